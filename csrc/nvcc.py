"""How csrc/cuda is compiled: used by setup.py, by check.py and by nothing at run time.

The extension is one shared library that registers operators through torch's stable ABI: it needs torch's headers, no
Python, and serves every torch from the one named by ``TARGET`` on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "cuda"
KERNELS = tuple(sorted(FOLDER.glob("*.cu")))
BINDINGS = FOLDER / "bindings.cpp"

TARGET = "0x020b000000000000"  # torch 2.11
ARCHITECTURES = "80 90a 90-ptx"
"""Default of HQTVAE_CUDA_ARCHS: machine code for A100 and H100 (wgmma exists in "a" code only), and PTX, which later
devices compile when they load it. ``80-ptx`` alone makes any later device run what an A100 runs, to be tested there."""

FLAGS = ("-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden")
TORCH_FLAGS = ("-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TARGET}")


def find_nvcc() -> str | None:
    """nvcc on PATH, else in CUDA_HOME."""
    home = os.environ.get("CUDA_HOME", os.environ.get("CUDA_PATH", "/usr/local/cuda"))
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))


def gencode(architectures: str) -> list[str]:
    """``80 90a 90-ptx`` as nvcc's options. A ValueError names what is neither."""
    options = []
    for name in architectures.replace(";", " ").split():
        number, _, kind = name.partition("-")
        if not number.rstrip("a").isdigit() or kind not in ("", "ptx"):
            raise ValueError(f"HQTVAE_CUDA_ARCHS: expected names like 80, 90a or 90-ptx; got {name!r}")
        options += ["-gencode", f"arch=compute_{number},code={'compute' if kind else 'sm'}_{number}"]
    if not options:
        raise ValueError("HQTVAE_CUDA_ARCHS: expected at least one architecture; got none")
    return options


def compile_source(nvcc: str, source: Path, out: Path, architectures: str, extra: Sequence[str] = ()) -> str:
    """Object file of one source; what the compilers said. A CalledProcessError carries it where they fail."""
    include = [*TORCH_FLAGS, f"-I{torch_folder() / 'include'}"] if source == BINDINGS else []
    command = [nvcc, *FLAGS, *gencode(architectures), *include, *extra, "-c", str(source), "-o", str(out)]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def link(nvcc: str, objects: Sequence[Path], out: Path) -> None:
    """The extension. CUDA's run-time library goes into it; torch's libraries are those that Python has loaded."""
    folder = torch_folder() / "lib"
    torch_libraries = ["-ltorch_cpu", *(["-ltorch_cuda"] if (folder / "libtorch_cuda.so").exists() else [])]
    command = [nvcc, "-shared", "-cudart", "static", *map(str, objects), f"-L{folder}", "-Xlinker", "--no-as-needed"]
    subprocess.run([*command, *torch_libraries, "-o", str(out)], check=True)


def torch_folder() -> Path:
    import torch

    return Path(torch.__file__).parent


def build(nvcc: str, folder: Path, out: Path, architectures: str) -> None:
    """Everything, into ``out``; objects stay in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in (*KERNELS, BINDINGS):
        objects.append(folder / f"{source.stem}.o")
        compile_source(nvcc, source, objects[-1], architectures)
    out.parent.mkdir(parents=True, exist_ok=True)
    link(nvcc, objects, out)

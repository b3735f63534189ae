"""The compiled parts of the package; everything static is in pyproject.toml.

``csrc/cpu`` becomes ``hqtvae_fast/_cpu*.so``: plain C functions that are loaded through ctypes, so its build needs a
C++ compiler (GCC 10 or Clang 9 for the AVX512-BF16 instructions) and neither Python's nor torch's headers. Without one
the package works as well, only slower on such processors, and ``hqtvae info`` says so. ``BUILD_CPU=0`` leaves it out,
``BUILD_CPU=1`` makes a failing build an error; the default builds it where that succeeds.

``csrc/cuda`` becomes ``hqtvae_fast/_C*.so`` where nvcc is found and torch, which must be there when this is built
(``pip install --no-build-isolation``), is a CUDA build. ``BUILD_CUDA`` is as ``BUILD_CPU``, but 1 also builds beside a
CPU build of torch; ``HQTVAE_CUDA_ARCHS`` names the architectures (see csrc/nvcc.py). The sources are installed too:
without the extension CuPy can compile them at run time.

Since neither library calls Python, one wheel (``cp310-abi3``) serves every Python that pyproject.toml allows.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc"))
import nvcc  # noqa: E402


def choice(name):
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name}: expected auto, 0 or 1; got {value!r}")
    return value


BUILD_CPU, BUILD_CUDA = choice("BUILD_CPU"), choice("BUILD_CUDA")

# -fopenmp at compile time only: the OpenMP library must be the one that torch has loaded, so none is linked. Nobody
# traps on floating-point exceptions, and GCC vectorises a choice between two numbers only where it may raise them. Its
# own intrinsics draw the two warnings.
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-fno-exceptions", "-fno-trapping-math"]
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
FLAGS += ["-Wno-psabi"]  # vectors are handed to nothing but what is compiled into the caller
SOURCES = ("attention_bf16", "attention_fp32", "group_norm_silu", "linear_bf16", "linear_int8", "philox", "round_map")
SOURCES += ("winograd",)

cpu = Extension(
    "hqtvae_fast._cpu",
    sources=[f"csrc/cpu/{name}.cpp" for name in SOURCES],
    depends=[f"csrc/cpu/{name}.h" for name in ("avx2", "avx512", "int8_rounding", "int8_sums", "maps")],
    extra_compile_args=FLAGS,
    language="c++",
    optional=BUILD_CPU == "auto",
    py_limited_api=True,
)
cuda = Extension("hqtvae_fast._C", sources=[], optional=BUILD_CUDA == "auto", py_limited_api=True)


def why_no_cuda():
    """None where csrc/cuda is compiled, else the reason."""
    if BUILD_CUDA == "0":
        return "BUILD_CUDA=0"
    if nvcc.find_nvcc() is None:
        return "nvcc is neither on PATH nor in CUDA_HOME"
    try:
        import torch
    except ImportError:
        return "torch is not there while building (pip install --no-build-isolation)"
    return None if torch.version.cuda or BUILD_CUDA == "1" else "torch is a CPU build"


def compile_at_once(compile_one_by_one, sources, **options):
    """Objects of all sources, on all cores: they are made one after the other otherwise."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda source: compile_one_by_one([source], **options), sources)
        return [name for names in made for name in names]


class BuildExtensions(build_ext):
    """csrc/cuda goes to nvcc, the rest the usual way."""

    def build_extension(self, extension):
        if extension is not cuda:
            self.compiler.compile = partial(compile_at_once, self.compiler.compile)
            super().build_extension(extension)
            return
        architectures = os.environ.get("HQTVAE_CUDA_ARCHS", nvcc.ARCHITECTURES)
        out = Path(self.get_ext_fullpath(extension.name)).absolute()
        try:
            nvcc.build(nvcc.find_nvcc(), Path(self.build_temp, "cuda").absolute(), out, architectures)
        except subprocess.CalledProcessError as error:
            print(error.output, file=sys.stderr)
            if BUILD_CUDA == "1":
                raise
            print("csrc/cuda: not built, since compiling failed as shown above", file=sys.stderr)


class BuildPython(build_py):
    """The CUDA sources go along, for CuPy. An editable install reads them from csrc."""

    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):
            target = Path(self.build_lib, "hqtvae_fast/_cuda_sources")
            shutil.copytree(nvcc.FOLDER, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.cpp"))


reason = why_no_cuda()
if reason is not None:
    if BUILD_CUDA == "1":
        raise SystemExit(f"BUILD_CUDA=1: {reason}")
    print(f"csrc/cuda: not built ({reason})", file=sys.stderr)

setup(
    ext_modules=([] if BUILD_CPU == "0" else [cpu]) + ([] if reason is not None else [cuda]),
    cmdclass={"build_ext": BuildExtensions, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)

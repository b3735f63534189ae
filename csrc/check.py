"""make csrc-check: what can be known of csrc/cuda without a GPU.

Every kernel is compiled for sm_80 and sm_90a and its registers, shared memory and spills are listed; a spill, or more
shared memory than a block may have, fails. Then the extension is linked against the torch that is installed and
loaded, and tests/csrc run: device functions on the CPU, and what the extension refuses (not with ``--compile-only``).
Exit code 1 where something fails. Without nvcc nothing is compiled, and that is said.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import nvcc  # noqa: E402

from hqtvae_fast.ops.kernels.prediction_head import cuda as head  # noqa: E402

ROOT = Path(__file__).parents[1]
ARCHITECTURES = "80 90a"
KIB = 1024
MOST_SHARED = {"sm_80": 163 * KIB, "sm_90a": 227 * KIB}
"""Of one block."""
LEAST_LEFT = 8 * KIB
"""What launch.h leaves of the 48 KB that a kernel may have without being allowed more, for static shared memory."""

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture. ``dynamic``: shared memory that its launcher asks for, at preset S."""

    kernel: str
    arch: str
    registers: int
    static: int
    dynamic: int
    spills: int
    stack: int

    @property
    def problems(self) -> list[str]:
        found = [] if self.spills == 0 else [f"{self.spills} bytes spilled"]
        if self.dynamic and self.static > LEAST_LEFT:
            found.append(f"more than {LEAST_LEFT} bytes of static shared memory, which launch.h does not count on")
        if self.static + self.dynamic > MOST_SHARED[self.arch]:
            found.append(f"more than {MOST_SHARED[self.arch]} bytes of shared memory")
        return found


def usages(compiler_output: str) -> list[Usage]:
    """Read from what ptxas -v says."""
    found = []
    for match in _ENTRY.finditer(compiler_output):
        static = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            Usage(
                kernel=match["kernel"],
                arch=match["arch"],
                registers=int(match["registers"]),
                static=int(static[1]) if static else 0,
                dynamic=dynamic_shared(match["kernel"], match["arch"]),
                spills=int(match["stores"]) + int(match["loads"]),
                stack=int(match["stack"]),
            )
        )
    return found


def dynamic_shared(kernel: str, arch: str) -> int:
    """Bytes that the launcher asks for, 8192 codes."""
    if kernel.startswith("sample_logits"):
        return 4 * 8192
    if kernel.startswith("prediction_head"):
        stored = kernel.split("_")[2]
        return head.shared_bytes(head.ring_slots(MOST_SHARED[arch], stored), stored)
    return 128 * KIB if kernel.startswith("score_codes") else 0


def print_table(rows: list[Usage]) -> None:
    print(f"{'kernel':<26} {'arch':<7} {'registers':>9} {'shared, static + dynamic':>25} {'spills':>7} {'stack':>6}")
    for row in sorted(rows, key=lambda row: (row.kernel, row.arch)):
        shared = f"{row.static} + {row.dynamic}"
        line = f"{row.kernel:<26} {row.arch:<7} {row.registers:>9} {shared:>25} {row.spills:>7} {row.stack:>6}"
        print(line + "".join(f"  FAILS: {problem}" for problem in row.problems))


def compile_all(compiler: str, folder: Path) -> list[str]:
    """Compile, on all cores, list, link; what is wrong, a line each."""
    # The longest first, and both architectures of a source side by side: the last one would leave cores idle.
    sources = sorted((*nvcc.KERNELS, nvcc.BINDINGS), key=lambda source: source.stat().st_size, reverse=True)
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compiled(source: Path, file: Path) -> str:
        return nvcc.compile_source(compiler, source, file, ARCHITECTURES, ("-Xptxas", "-v", "--threads", "0"))

    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a process
        pending = [pool.submit(compiled, *pair) for pair in zip(sources, objects, strict=True)]
        for source, one in zip(sources, pending, strict=True):
            try:
                rows += usages(one.result())
            except subprocess.CalledProcessError as error:
                return [f"{source.name} does not compile:\n{error.output}"]
    print_table(rows)
    problems = [f"{row.kernel}, {row.arch}: {problem}" for row in rows for problem in row.problems]
    if {row.arch for row in rows} != set(MOST_SHARED) or len(rows) < 2 * len(nvcc.KERNELS):
        problems.append(f"expected a line a kernel and architecture from ptxas; got {len(rows)}")
    nvcc.link(compiler, objects, folder / LIBRARY)
    return problems


def load(library: Path) -> list[str]:
    """Register the operators in a process of its own; what is wrong, a line each."""
    loaded = subprocess.run([sys.executable, "-c", LOAD, str(library)], text=True, capture_output=True)
    print(loaded.stdout, end="")
    return [] if loaded.returncode == 0 else [f"the extension does not load:\n{loaded.stderr}"]


LIBRARY = "_C.so"
LOAD = """
import sys, torch
torch.ops.load_library(sys.argv[1])
found = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("hqtvae_fast_cuda::")]
assert found, "no operators"
print(f"torch {torch.__version__} has loaded the extension: {', '.join(sorted(found))}")
"""


def run_tests(library: Path) -> list[str]:
    """tests/csrc, those of the extension's refusals included where it was linked."""
    environment = {**os.environ, **({"HQTVAE_TEST_EXTENSION": str(library)} if library.exists() else {})}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "tests/csrc"], cwd=ROOT, env=environment
    )
    return [] if done.returncode == 0 else ["tests/csrc failed"]


def main() -> int:
    problems, compiler = [], nvcc.find_nvcc()
    with tempfile.TemporaryDirectory() as name:
        library = Path(name, LIBRARY)
        if compiler is None:
            print(
                "SKIPPED: nvcc is neither on PATH nor in CUDA_HOME; nothing of csrc/cuda was compiled", file=sys.stderr
            )
        else:
            problems = compile_all(compiler, library.parent)
            problems += load(library) if library.exists() else []
        if "--compile-only" not in sys.argv:
            problems += run_tests(library)
    for problem in problems:
        print(f"csrc-check: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

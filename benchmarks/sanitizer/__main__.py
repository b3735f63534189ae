"""python -m benchmarks.sanitizer [--tool memcheck ...] [--op NAME ...]

For each tool: the fault planted in ``faults.cu`` must be found, the faultless kernel must pass, and then so must every
op's small cases on the GPU. Exit code 1 where one of these fails, 3 where a program that this needs is absent.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 9  # the exit code that the sanitizer gives where it found something
ABSENT = 3
SOURCE = Path(__file__).with_name("faults.cu")

# torch keeps freed memory for reuse: an access beyond a tensor would land in memory that is still allocated.
ENVIRONMENT = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

Run = Callable[[Sequence[str]], int]


def under(tool: str, command: Sequence[str]) -> list[str]:
    """The command under one of the tools."""
    # Compiled kernels are cached by Triton's own process; what the sanitizer must not follow is the compiler.
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "application-only"]
    return ["compute-sanitizer", *options, *command]


def check_tool(tool: str, faults: str, ops: Sequence[str], run: Run) -> list[str]:
    """What is wrong, a line each."""
    code = run(under(tool, [faults, tool]))
    if code != FOUND:
        return [f"{tool}: the planted fault was not found (exit code {code}): what passes it proves nothing"]
    code = run(under(tool, [faults, "nothing"]))
    if code != 0:
        return [f"{tool}: a faultless kernel failed (exit code {code})"]
    code = run(under(tool, [sys.executable, "-m", "benchmarks.sanitizer.cases", *ops]))
    return [] if code == 0 else [f"{tool}: {'faults in our kernels' if code == FOUND else f'exit code {code}'}"]


def run_it(command: Sequence[str]) -> int:
    return subprocess.run(command, env=ENVIRONMENT, check=False).returncode


def missing_programs() -> list[str]:
    return [name for name in ("compute-sanitizer", "nvcc") if shutil.which(name) is None]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.sanitizer", description=__doc__)
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--op", nargs="+", default=[], metavar="NAME", help="only these ops; default: all")
    arguments = parser.parse_args(argv)
    absent = missing_programs()
    if absent:
        print(f"not run: {', '.join(absent)} not on PATH", file=sys.stderr)
        return ABSENT
    with tempfile.TemporaryDirectory() as folder:
        faults = str(Path(folder, "faults"))
        subprocess.run(["nvcc", "-o", faults, str(SOURCE)], check=True)
        problems = []
        for tool in arguments.tool:
            found = check_tool(tool, faults, arguments.op, run_it)
            print(f"{tool}: {'; '.join(found) or 'the planted fault found, ours clean'}", flush=True)
            problems += found
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

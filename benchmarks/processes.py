"""A suite in several fresh processes, one after the other, as one results file.

python -m benchmarks.processes 5 out.json generate --preset tiny --device cpu

Runs of one process share its memory layout and its place on the cores: only several processes show how far a figure
would move if it were taken again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring.environment import HERE
from benchmarks.measuring.schema import Results, merge, read, write


def run_in_processes(suite: str, arguments: Sequence[str], count: int) -> Results:
    """``python -m benchmarks.suites.SUITE ARGUMENTS`` in ``count`` processes; RuntimeError where one fails."""
    if count < 1:
        raise ValueError(f"processes: expected at least 1; got {count}")
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            file = Path(folder, f"{index}.json")
            command = [sys.executable, "-m", f"benchmarks.suites.{suite}", *arguments, "--json", str(file)]
            code = subprocess.run(command, cwd=HERE.parent, check=False).returncode
            if code != 0:
                raise RuntimeError(f"process {index + 1} of {count} ended with exit code {code}: {' '.join(command)}")
            parts.append(read(file))
    return merge(parts)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 3 or not arguments[0].isdecimal():
        print("usage: python -m benchmarks.processes COUNT OUT.json SUITE [OPTIONS...]", file=sys.stderr)
        return 2
    count, out, suite, *rest = arguments
    write(run_in_processes(suite, rest, int(count)), Path(out).absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What ``gpu.sh`` says of its parts, as a results file: seconds and outcome of each.

python -m benchmarks.report.parts out/summary.txt out/parts.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measuring.environment import describe
from benchmarks.measuring.schema import Results, Row, write


def rows_of(summary: str) -> tuple[Row, ...]:
    """Of lines ``PART|SECONDS|OUTCOME|WHAT``."""
    rows = []
    for line in summary.splitlines():
        part, seconds, outcome, what = line.split("|", 3)
        work = {"part": int(part), "outcome": outcome}
        rows.append(Row(f"part {part}: {what}", "gpu.sh", ((float(seconds),),), work=work))
    return tuple(rows)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m benchmarks.report.parts SUMMARY.txt OUT.json", file=sys.stderr)
        return 2
    rows = rows_of(Path(arguments[0]).read_text(encoding="utf-8"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    write(Results("gpu", describe(device, "report.parts"), rows), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

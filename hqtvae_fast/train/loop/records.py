"""``losses.jsonl``: what a run logged, a line an update. It may end in half a line, and is read all the same.

A record has ``step``, ``epoch`` (passes over the data, in parts), ``learning_rate`` (of that update), the metrics,
``seconds`` (that training took so far, all pieces of the run together) and ``images_per_second`` (since the last one).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hqtvae_fast.files import write_file

LOSSES = "losses.jsonl"
TIMES = ("seconds", "images_per_second")
"""What differs between two runs that are the same."""


class Pace:
    """How fast a run is, measured from record to record."""

    def __init__(self) -> None:
        self.begin(0.0, 0)

    def begin(self, seconds: float, seen: int) -> None:
        """``seen``: pictures that the run has used so far."""
        self.seconds, self.seen = seconds, seen

    def measure(self, seconds: float, seen: int) -> dict[str, float]:
        """The times of a record that is written now."""
        passed, pictures = max(seconds - self.seconds, 1e-6), seen - self.seen
        self.begin(seconds, seen)
        return dict(zip(TIMES, (round(seconds, 3), round(pictures / passed, 3)), strict=True))


def add_record(file: Path, record: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")


def read_records(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Records in their order, none without a file; and how many lines are none."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    found = [_record(line) for line in lines]
    records = [record for record in found if record is not None]
    return records, len(lines) - len(records)


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two runs that are the same have in common."""
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def cut_records(file: Path, step: int) -> int:
    """Forget what was logged after update ``step``, and lines that are no records; returns how many these were."""
    records, broken = read_records(file)
    if records or broken:
        kept = [record for record in records if record["step"] <= step]
        write_file(file, "".join(f"{json.dumps(record)}\n" for record in kept).encode())
    return broken


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # half a line, or what a power cut left: no JSON, or no text
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None

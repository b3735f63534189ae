"""``losses.jsonl``: what a run logged, a line an update. It may end in half a line, and is read all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hqtvae_fast.files import write_file

LOSSES = "losses.jsonl"


def add_record(file: Path, record: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")


def read_records(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Records in their order, none without a file; and how many lines are none."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    found = [_record(line) for line in lines]
    records = [record for record in found if record is not None]
    return records, len(lines) - len(records)


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

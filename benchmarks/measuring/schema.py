"""What a results file is: one JSON form for all suites, so that any two files of one suite can be compared.

    {"schema": 1, "benchmark": "generate", "environment": {...}, "rows": [...], ...the suite's own details}

``environment`` is what :func:`benchmarks.measuring.environment.describe` tells. A row is one figure of one entrant:
its samples by process and run, what follows from them, what work was done in it, and whether it may be quoted.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measuring import stats

SCHEMA = 1
QUANTILES = (0.1, 0.25, 0.75, 0.9)
ENVIRONMENT = (
    *("device", "driver", "cpu", "cpus", "threads", "platform", "python", "torch", "versions", "cuda"),
    *("git_revision", "clocks", "date", "command"),
)
"""What every file says of its surroundings; null where there is none."""


class SchemaError(ValueError):
    """A file is not what it should be; the message names the file, what was expected and what it holds."""


@dataclass(frozen=True)
class Row:
    """One figure of one entrant.

    ``name``: what was measured, with its sizes; ``entrant``: by whom. ``unit``: "s" for times, "ratio" for quotients
    of times taken in turn, else what is counted. ``samples[process][run]``, smaller is better in every unit.
    ``tolerance``: None for what is measured and judged by statistics; a share for what is counted, which may grow by
    so much. ``work``: what one sample does (images, flops, bytes, floor_seconds) and what the suite adds. ``unfit``:
    why it must not be quoted, None if it may.
    """

    name: str
    entrant: str
    samples: tuple[tuple[float, ...], ...]
    unit: str = "s"
    ours: bool = True
    tolerance: float | None = None
    work: Mapping[str, Any] = field(default_factory=dict)
    clocks: Mapping[str, Any] | None = None
    unfit: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.entrant

    @property
    def median(self) -> float:
        return stats.median_over_processes(self.samples)

    @property
    def runs(self) -> list[float]:
        """All samples, whichever process they are from."""
        return [value for process in self.samples for value in process]

    def to_dict(self) -> dict[str, Any]:
        low, high = _interval(self.samples) if self.tolerance is None else (self.median, self.median)
        return {
            **{name: getattr(self, name) for name in ("name", "entrant", "ours", "unit", "tolerance")},
            "median": self.median,
            "min": min(self.runs),
            "quantiles": {f"{share:g}": stats.quantile(self.runs, share) for share in QUANTILES},
            "interval": {"low": low, "high": high, "confidence": 0.95, "processes": len(self.samples)},
            "samples": [list(process) for process in self.samples],
            "work": dict(self.work),
            "clocks": None if self.clocks is None else dict(self.clocks),
            "unfit": self.unfit,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Row:
        """From :meth:`to_dict`'s form; what follows from the samples is computed anew."""
        samples = tuple(tuple(float(value) for value in process) for process in entry["samples"])
        if not samples or not all(samples):
            raise SchemaError(f"row {entry['name']!r}: expected samples of at least one process; got none")
        kept = ("name", "entrant", "ours", "unit", "tolerance", "work", "clocks", "unfit")
        return cls(samples=samples, **{name: entry[name] for name in kept})


@functools.cache  # a file that grows row by row is written often, and an interval takes a tenth of a second
def _interval(samples: tuple[tuple[float, ...], ...]) -> tuple[float, float]:
    return stats.bootstrap_interval(samples)


@dataclass(frozen=True)
class Results:
    """A results file. ``details``: what the suite says besides, by name."""

    benchmark: str
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        rows = [row.to_dict() for row in self.rows]
        head = {"schema": SCHEMA, "benchmark": self.benchmark, "environment": dict(self.environment)}
        return {**head, "rows": rows, **self.details}

    @property
    def device(self) -> str:
        return str(self.environment["device"])

    @property
    def machine(self) -> str:
        """The device; a CPU with the instructions that tell it from others of its name: "AMD EPYC (AVX512-BF16)"."""
        facts = self.environment
        if self.device != facts["cpu"]:
            return self.device
        # Files from before features were told have the widest vectors that torch uses.
        features = [*facts.get("cpu_features", []), facts.get("cpu_capability")]
        return f"{self.device} ({features[0]})" if features[0] else self.device

    def ours(self, row: Row) -> Row | None:
        """What a row of this run is to be held against: the row of ours of the same work; None if there is none."""
        rows = [other for other in self.rows if other.ours and other.name == row.name]
        # Of several backends of ours the one that a user gets.
        return next((other for other in rows if other.work.get("times_longer_than_ours", 1.0) == 1.0), None)

    def ratio(self, row: Row) -> float | None:
        """How many times as long as ours a row takes, of this run alone; None for ours itself and what is no time."""
        ours = self.ours(row) if row.unit == "s" else None
        return None if ours is None or ours is row else row.median / ours.median


def write(results: Results, file: Path) -> None:
    file.write_text(json.dumps(results.to_document(), indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> Results:
    """Raises :class:`SchemaError` on a file that is not of this form, OSError on one that cannot be read."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SchemaError(f"{file}: expected JSON; got {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise SchemaError(f"{file}: expected results of schema {SCHEMA}; got {got}")
    try:
        environment = document["environment"]
        missing = [name for name in ENVIRONMENT if name not in environment]
        if missing:
            raise SchemaError(f"{file}: the environment lacks {', '.join(missing)}")
        rows = tuple(Row.from_dict(entry) for entry in document["rows"])
        details = {k: v for k, v in document.items() if k not in ("schema", "benchmark", "environment", "rows")}
        return Results(document["benchmark"], environment, rows, details)
    except (KeyError, TypeError) as error:
        raise SchemaError(f"{file}: expected results of schema {SCHEMA}; a field is missing: {error}") from None


def merge(parts: Sequence[Results]) -> Results:
    """The same run in several processes as one: each row's processes together, the first's environment and details.

    A row counts as unfit if it was in any process. Rows that not every process has are left out, and named in the
    details under "incomplete".
    """
    first = parts[0]
    found = [{row.key: row for row in part.rows} for part in parts]
    complete = [row for row in first.rows if all(row.key in rows for rows in found)]
    every = {key for rows in found for key in rows}
    merged = tuple(_together([rows[row.key] for rows in found]) for row in complete)
    lost = sorted(" / ".join(key) for key in every - {row.key for row in complete})
    details = {**first.details, **({"incomplete": lost} if lost else {})}
    return Results(first.benchmark, first.environment, merged, details)


def _together(rows: Sequence[Row]) -> Row:
    samples = tuple(process for row in rows for process in row.samples)
    unfit = next((row.unfit for row in rows if row.unfit), None)
    first = rows[0]
    if first.tolerance is not None:
        samples = first.samples
    kept = {name: getattr(first, name) for name in ("name", "entrant", "unit", "ours", "tolerance", "work", "clocks")}
    return Row(samples=samples, unfit=unfit, **kept)

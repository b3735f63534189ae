"""Which rows became slower: the verdicts of a comparison, and its Markdown summary.

A row is **slower** if the ranks say so (ALPHA = 1% for all rows together, by Holm) and the estimated loss is at least
half the threshold: a loss of the whole threshold is then found unless the noise hides it, and a significant trifle
does not stop anyone's work. It is **unchanged** if the interval excludes a loss of the threshold, and **unclear**
otherwise: the runs cannot tell, which is no pass. What is counted, not measured, is **more** beyond its own tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gate.pairs import Paired
from benchmarks.measuring.figures import plain
from benchmarks.measuring.schema import Results, Row, read
from benchmarks.measuring.stats import ALPHA, Shift, holm, median_over_processes, paired_shift, unpaired_shift

LEAST_PROCESSES = 5  # a side, for processes to be the units: 5 against 5 can just be told apart at 1%
LOSSES = ("slower", "more")
# Of the same device, these must agree too: a CPU's name says little of what a process may use of it.
SAME = ("device", "cpus", "threads", "cpu_capability", "cpu_features", "torch", "cuda")


class CannotCompare(ValueError):
    """The two sides have nothing in common, or come from different devices."""


@dataclass(frozen=True)
class Change:
    """A row on both sides, in the row's unit. ``shift``: None for what is counted, with ``tolerance`` then."""

    name: str
    entrant: str
    unit: str
    base: float
    new: float
    shift: Shift | None = None
    tolerance: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """``p``: adjusted for all rows, of being slower; None for what is counted."""

    change: Change
    word: str
    p: float | None

    @property
    def is_loss(self) -> bool:
        return self.word in LOSSES


def judge(changes: Sequence[Change], threshold: float) -> list[Verdict]:
    """A verdict for each row, losses first."""
    measured = [change for change in changes if change.shift is not None]
    slower = holm([change.shift.p_more for change in measured])
    faster = holm([change.shift.p_less for change in measured])
    verdicts = [_of_measured(*row, threshold) for row in zip(measured, slower, faster, strict=True)]
    verdicts += [_of_counted(change) for change in changes if change.shift is None]
    order = (*LOSSES, "unclear", "faster", "less", "unchanged", "same")
    return sorted(verdicts, key=lambda verdict: order.index(verdict.word))


def _of_measured(change: Change, p_more: float, p_less: float, threshold: float) -> Verdict:
    shift = change.shift
    assert shift is not None
    if p_more < ALPHA and shift.estimate >= threshold / 2:
        word = "slower"
    elif p_less < ALPHA and shift.estimate <= -threshold / 2:
        word = "faster"
    else:
        word = "unchanged" if shift.high < threshold else "unclear"
    return Verdict(change, word, p_more)


def _of_counted(change: Change) -> Verdict:
    if change.new > change.base * (1 + change.tolerance):
        return Verdict(change, "more", None)
    return Verdict(change, "less" if change.new < change.base else "same", None)


# ------------------------------------------------------------------------------------------------------ the two sources


def between_sides(paired: Paired, unit: str = "s") -> list[Change]:
    """Of two sides that were timed in turn."""
    base, new = paired.samples
    return [
        Change(
            *(part, "ours", unit, median_over_processes(base[part]), median_over_processes(new[part])),
            shift=paired_shift(paired.log_ratios(part)),
        )
        for part in base
    ]


def between_files(base: Results, new: Results) -> list[Change]:
    """Of two stored results; :class:`CannotCompare` unless they are of one suite, one device and share rows of ours."""
    if base.benchmark != new.benchmark:
        raise CannotCompare(f"expected two results of one suite; got {base.benchmark} and {new.benchmark}")
    differing = [name for name in SAME if base.environment.get(name) != new.environment.get(name)]
    if differing and any(row.tolerance is None and row.unit == "s" for row in new.rows):
        pairs = "; ".join(f"{name}: {base.environment.get(name)} and {new.environment.get(name)}" for name in differing)
        raise CannotCompare(f"times can only be compared on the same machine and software; got {pairs}")
    old = {row.key: row for row in base.rows if row.ours}
    common = [(old[row.key], row) for row in new.rows if row.ours and row.key in old]
    if not common:
        raise CannotCompare("the two results share no row of ours")
    return [_between_rows(*rows) for rows in common]


def _between_rows(base: Row, new: Row) -> Change:
    head = (new.name, new.entrant, new.unit, base.median, new.median)
    if new.tolerance is not None:
        return Change(*head, tolerance=new.tolerance)
    notes = [f"{side}: {row.unfit}" for side, row in (("base", base), ("new", new)) if row.unfit]
    enough = min(len(base.samples), len(new.samples)) >= LEAST_PROCESSES
    if enough:
        units = [[median_over_processes([runs]) for runs in row.samples] for row in (base, new)]
    else:
        units = [row.runs for row in (base, new)]
        notes.insert(0, f"runs, not processes, are compared: fewer than {LEAST_PROCESSES} processes a side")
    return Change(*head, shift=unpaired_shift(*units), note="; ".join(notes))


def missing(base: Results, new: Results) -> list[str]:
    """Rows of ours that only one side has, a line each."""
    keys = [{row.key for row in results.rows if row.ours} for results in (base, new)]
    gone, added = keys[0] - keys[1], keys[1] - keys[0]
    return [f"only in base: {' / '.join(k)}" for k in sorted(gone)] + [
        f"only in new: {' / '.join(k)}" for k in sorted(added)
    ]


def stored_baseline(folder: Path, new: Results) -> Path:
    """The newest file of the folder of the same suite and machine; :class:`CannotCompare` lists what there is."""
    found = {file: read(file) for file in sorted(folder.glob("*.json"))}
    same = [f for f, r in found.items() if (r.benchmark, r.machine) == (new.benchmark, new.machine)]
    if not same:
        there = ", ".join(f"{r.benchmark} on {r.machine}" for r in found.values()) or "nothing"
        raise CannotCompare(f"{folder}: expected results of {new.benchmark} on {new.machine}; got {there}")
    return max(same, key=lambda file: str(found[file].environment["date"]))


def rounds_needed(rows: int) -> int:
    """Pairs of processes without which no verdict could be significant over so many rows, and two more."""
    count = 1
    while rows * 0.5**count >= ALPHA:
        count += 1
    return count + 2


# -------------------------------------------------------------------------------------------------------------- reports

MILLI = {"s": (1e3, "ms")}


def to_markdown(verdicts: Sequence[Verdict], title: str, threshold: float, notes: Sequence[str]) -> str:
    """A heading, the outcome in one sentence, a table, and a list of notes."""
    losses = [verdict for verdict in verdicts if verdict.is_loss]
    unclear = sum(verdict.word == "unclear" for verdict in verdicts)
    outcome = f"**{len(losses)} of {len(verdicts)} rows lost**" if losses else f"No loss in {len(verdicts)} rows"
    if unclear:
        outcome += f"; {unclear} unclear: noise could hide a loss of {threshold:.1%}"
    lines = [f"### {title}", "", f"{outcome} (threshold {threshold:.1%}).", ""]
    lines += ["| what | base | new | change | 98% interval | p | verdict |", "|---|--:|--:|--:|--:|--:|---|"]
    lines += [_line(verdict) for verdict in verdicts if verdict.word != "same"]
    by_row = [f"{v.change.name}: {v.change.note}" for v in verdicts if v.change.note]
    same = sum(verdict.word == "same" for verdict in verdicts)
    told = [*([f"{same} counts are the same"] if same else []), *notes, *by_row]
    return "\n".join([*lines, *([""] + [f"- {note}" for note in told] if told else [])]) + "\n"


def _line(verdict: Verdict) -> str:
    change, shift = verdict.change, verdict.change.shift
    scale, unit = MILLI.get(change.unit, (1, change.unit))
    name = change.name if change.entrant == "ours" else f"{change.name} / {change.entrant}"
    word = f"**{verdict.word}**" if verdict.is_loss else verdict.word
    cells = [name, f"{plain(change.base * scale)} {unit}", plain(change.new * scale)]
    if shift is None:
        share = f"{change.new / change.base - 1:+.1%}" if change.base else f"{change.new - change.base:+g}"
        return f"| {' | '.join([*cells, share, '', '', word])} |"
    interval = f"{shift.low:+.1%} to {shift.high:+.1%}".replace("-100.0%", "-").replace("+inf%", "-")
    return f"| {' | '.join([*cells, f'{shift.estimate:+.1%}', interval, f'{verdict.p:.2g}', word])} |"

"""Where a run stands: a small file of each of its checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hqtvae_fast.fields import parse
from hqtvae_fast.files import parse_json, read_text, write_file
from hqtvae_fast.run_folder import CHECKPOINTS, damage, newest_first
from hqtvae_fast.train.data import BrokenCount

POSITION_FILE = "position.json"


class OtherRunError(ValueError):
    """A run goes on with other pictures, or on another model, than it was started with."""


@dataclass(frozen=True)
class Saved:
    """A position as its file has it."""

    step: int
    seen: int
    seconds: float
    fingerprint: str
    broken: int


@dataclass
class Position:
    """Where a run stands."""

    step: int = 0
    seen: int = 0
    """Pictures of the stream that the updates so far have used."""
    seconds: float = 0.0
    """That training took so far, all of its pieces together; what was lost with a kill is not counted."""
    fingerprint: str = ""
    broken: BrokenCount = field(default_factory=BrokenCount)

    def save(self, checkpoint: Path) -> None:
        saved = Saved(self.step, self.seen, self.seconds, self.fingerprint, self.broken.count)
        write_file(checkpoint / POSITION_FILE, json.dumps(asdict(saved), indent=1).encode() + b"\n")

    def go_to(self, saved: Saved) -> None:
        """OtherRunError where that is another run's."""
        if self.fingerprint and saved.fingerprint != self.fingerprint:
            raise OtherRunError(
                "data: expected the pictures that this run was started on; these are others: give another --out"
            )
        self.step, self.seen, self.seconds = saved.step, saved.seen, saved.seconds
        self.broken.count = saved.broken


def read_position(checkpoint: Path) -> Saved:
    """ValueError or OSError, naming the file, where it cannot be read."""
    file = checkpoint / POSITION_FILE
    return parse(Saved, parse_json(read_text(file), file), str(file))


def more_updates(run: Path, batch_size: int) -> float:
    """How many more updates a run has made than its pictures would be in batches of this size; 0 for one whose batches
    always had it, or that is not begun."""
    for checkpoint in newest_first(run / CHECKPOINTS):
        if (checkpoint / POSITION_FILE).is_file() and not damage(checkpoint):
            saved = read_position(checkpoint)
            return saved.step - saved.seen / batch_size
    return 0.0

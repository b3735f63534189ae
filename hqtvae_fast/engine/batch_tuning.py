"""Which batch sizes are worth having on this device, found by drawing and decoding with them, and kept in a small file.

A batch size is worth having if it is the one with the most images a second, or a smaller one that saves time over the
next larger that is kept: a request's last images are computed as the smallest kept size that holds them, and each size
costs the memory of its captures. Sizes above the fastest one are not kept.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtvae_fast.engine.batches import is_out_of_memory
from hqtvae_fast.files import read_text, write_file

WORTH = 0.95
"""A size is kept if it takes at most this share of the next larger one's time."""
SECONDS, MOST_RUNS = 1.0, 20  # for each size, after one run that captures and warms up
PAST_BEST = 0.8  # sizes whose images a second fall below this share of the best end the search

Facts = Mapping[str, Any]
"""What the times hold for: the device, the model, what it computes in."""


@dataclass(frozen=True)
class BatchTuning:
    """Seconds of drawing and decoding a batch, by its size."""

    seconds: Mapping[int, float]

    @property
    def best(self) -> int:
        """The size with the most images a second; of equal ones the smallest."""
        return max(sorted(self.seconds), key=lambda size: size / self.seconds[size])

    @property
    def buckets(self) -> tuple[int, ...]:
        """The sizes to compute with, ascending; the last one is :attr:`best`."""
        kept = [self.best]
        for size in sorted((size for size in self.seconds if size < self.best), reverse=True):
            if self.seconds[size] <= WORTH * self.seconds[kept[-1]]:
                kept.append(size)
        return tuple(reversed(kept))


def measure(
    run: Callable[[int], None],
    sizes: Sequence[int],
    *,
    batches: int = 1,
    on_size: Callable[[int, float], None] | None = None,
) -> BatchTuning:
    """Times ``run`` (which draws and decodes ``batches`` batches of that size, and waits for them) at ascending
    ``sizes``.

    Ends at the first that does not fit into memory, or that is well past the best. ``on_size`` is told of each size
    and its seconds. Raises MemoryError if the smallest does not fit.
    """
    seconds: dict[int, float] = {}
    for size in sorted(set(sizes)):
        try:
            run(size)
            seconds[size] = _median_seconds(run, size) / batches
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if not seconds:
                raise MemoryError(f"not enough memory for {size} image{'s' if size > 1 else ''} at once") from error
            break
        if on_size is not None:
            on_size(size, seconds[size])
        tuning = BatchTuning(seconds)
        if size / seconds[size] < PAST_BEST * tuning.best / seconds[tuning.best]:
            break
    return BatchTuning(seconds)


def _median_seconds(run: Callable[[int], None], size: int) -> float:
    taken: list[float] = []
    while not taken or (sum(taken) < SECONDS and len(taken) < MOST_RUNS):
        start = time.perf_counter()
        run(size)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


# ------------------------------------------------------------------------------------------------------------- the file


def default_file() -> Path:
    """``batches.json`` in the folder that HQTVAE_CACHE names, else in hqtvae_fast/ of the user's cache folder."""
    own = os.environ.get("HQTVAE_CACHE")
    if own:
        return Path(own) / "batches.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hqtvae_fast" / "batches.json"


def load(facts: Facts, file: Path) -> BatchTuning | None:
    """What was measured under the same facts, or None. ValueError on a file that is none of ours."""
    for entry in _read(file):
        if entry["facts"] == dict(facts):
            return BatchTuning({int(size): float(seconds) for size, seconds in entry["seconds"].items()})
    return None


def save(tuning: BatchTuning, facts: Facts, file: Path) -> None:
    """Keep the times, in place of older ones under the same facts. What else the file holds stays."""
    entries = [entry for entry in _read(file) if entry["facts"] != dict(facts)]
    entries.append({"facts": dict(facts), "seconds": {str(size): tuning.seconds[size] for size in tuning.seconds}})
    write_file(file, (json.dumps(entries, indent=1) + "\n").encode())


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(read_text(file))
        if not all(entry["seconds"] and entry["facts"] and min(entry["seconds"].values()) > 0 for entry in entries):
            raise ValueError("an entry without facts or times")
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: expected the times of batch sizes that `hqtvae tune` writes; got {error}") from None
    return list(entries)

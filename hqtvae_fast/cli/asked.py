"""What ``hqtvae sample`` was asked for, as its options say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hqtvae_fast.cli.options import ComputeIn, open_pipeline

if TYPE_CHECKING:
    from hqtvae_fast.pipeline import HQTVAEPipeline


@dataclass(frozen=True)
class Machine:
    """What draws: the checkpoints, what they run on and in, and the plan that they go by."""

    checkpoint: str
    device: str | None
    dtype: ComputeIn | None
    refiner: Path | None
    quantization: str | None
    plan: str
    accept: list[str]

    def open(self, device: str | None) -> HQTVAEPipeline:
        how: dict[str, Any] = {"quantization": self.quantization, "plan": self.plan, "accept": self.accept}
        return open_pipeline(self.checkpoint, device, self.dtype, self.refiner, **how)


@dataclass(frozen=True)
class Wanted:
    """What is drawn: ``num_images`` of each class or prompt, or so many in all. ``sampling``: top_k, top_p and
    temperature, each a number or one a level, and what guides or completes, where that is asked for.
    ``keep``: the one level to decode; None: all."""

    labels: Sequence[int]
    prompts: Sequence[str]
    num_images: int
    seed: int
    sampling: dict[str, Any]
    keep: int | None = None
    given_top: Path | None = None


@dataclass(frozen=True)
class Files:
    """Where it goes, and how the sheet looks."""

    sheet: Path | None
    folder: Path | None
    codes: Path | None
    columns: int | None
    scale: int
    captions: bool
    kind: str


@dataclass(frozen=True)
class Judged:
    """Who chooses among more pictures than are kept, if anyone does."""

    classifier: str | None
    accept: float
    targets: list[str] | None

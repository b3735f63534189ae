"""``hqtvae sample --classifier``: more pictures are drawn than are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from hqtvae_fast.cli.asked import Judged
from hqtvae_fast.cli.drawings import Drawing
from hqtvae_fast.cli.options import parse_integers
from hqtvae_fast.cli.output import count, waiting
from hqtvae_fast.hardware import pick_device

if TYPE_CHECKING:
    from hqtvae_fast.evaluate.rejection import Candidate, Judge

Drawn = tuple[Drawing, tuple[Image.Image | None, tuple[Tensor, ...]]]


class Rejection:
    """What to keep of a plan's drawings: ``kept`` of the ``drawn`` that each subject has."""

    def __init__(self, judge: Judge, kept: int, drawn: int, targets: list[str] | None) -> None:
        from hqtvae_fast.evaluate.rejection import Counters

        self.judge, self.kept, self.drawn = judge, kept, drawn
        self.targets = None if targets is None else parse_integers("--targets", targets)
        self.counters = Counters()

    def check(self, drawings: Sequence[Drawing], level: int | None) -> None:
        """ValueError, before anything is drawn, where these cannot be judged. ``level``: the only one decoded."""
        if level is not None:
            raise ValueError("--classifier: judges whole pictures; expected neither --top-only nor --bottom-only")
        subjects = [self._wanted(number, drawing) for number, drawing in enumerate(drawings[:: self.drawn])]
        if self.targets is not None and len(self.targets) != len(subjects):
            raise ValueError(f"--targets: expected {len(subjects)}, one a class or prompt; got {len(self.targets)}")

    def choose(self, drawn: Iterable[Drawn], batch: int) -> Iterator[Drawn]:
        """Those kept, subject after subject, best first; the network sees ``batch`` at a time."""
        from hqtvae_fast.evaluate.rejection import best_of

        chosen = best_of(
            self._candidates(drawn), self.judge, self.drawn, self.kept, batch=batch, counters=self.counters
        )
        return (item for _, item in chosen)

    def report(self) -> None:
        """How much surer the network is of those kept."""
        counters = self.counters
        score = "log-probability" if self.judge.reads is int else "cosine with the prompt"
        if counters.kept:
            typer.echo(
                f"kept {counters.kept:,} of {count(counters.seen, 'candidate')} by {self.judge.name}: mean {score}"
                f" {counters.kept_sum / counters.kept:.3f}, of all {counters.seen_sum / counters.seen:.3f}"
            )

    def _candidates(self, drawn: Iterable[Drawn]) -> Iterator[Candidate[Drawn]]:
        from hqtvae_fast.evaluate.rejection import Candidate

        for index, (drawing, (image, codes)) in enumerate(drawn):
            assert image is not None  # a plan with a classifier always decodes
            subject = index // self.drawn
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            yield Candidate(subject, self._wanted(subject, drawing), pixels, (drawing, (image, codes)))

    def _wanted(self, subject: int, drawing: Drawing) -> Any:
        if self.judge.reads is str:
            if drawing.prompt is None:
                raise ValueError(f"--classifier: {self.judge.name} reads prompts, and there are none")
            return drawing.prompt
        if self.targets is not None:
            return self.targets[min(subject, len(self.targets) - 1)]
        if drawing.label is None:
            raise ValueError(f"--classifier: {self.judge.name} knows classes; expected --classes or --targets")
        return drawing.label


def open_rejection(judged: Judged, num_images: int, device: str | None) -> Rejection | None:
    """None where no classifier is asked for."""
    if judged.classifier is None:
        if judged.targets is not None:
            raise ValueError("--targets: expected --classifier with it")
        return None
    from hqtvae_fast.evaluate.rejection import candidates_for, open_judge

    drawn = candidates_for(num_images, judged.accept)
    with waiting(f"Opening {judged.classifier}"):
        return Rejection(open_judge(judged.classifier, pick_device(device)), num_images, drawn, judged.targets)

"""Rejection sampling: of all pictures drawn for a condition, the share that a classifier is surest of.

The paper draws four candidates for each ImageNet picture and keeps the quarter to which ResNet-101 gives the highest
probability of their class (acceptance rate 0.25); DALL-E's way for texts is the same with CLIP. Candidates stream by:
for each condition only the best so far are in memory.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hqtvae_fast.evaluate.extractors.clip import CLIP, load_clip
from hqtvae_fast.evaluate.extractors.efficientnet import NAME as EFFICIENTNET
from hqtvae_fast.evaluate.extractors.efficientnet import EfficientNetLogits, load_efficientnet
from hqtvae_fast.evaluate.extractors.modules import load_module, name_module
from hqtvae_fast.evaluate.extractors.resize import antialiased

ACCEPTANCE = 0.25  # the paper's
IMAGENET_SIDE, IMAGENET_MEAN, IMAGENET_DEVIATION = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXPECTED = f"{EFFICIENTNET}, clip:DIR, a saved module (.pt2, .pt) or package.module:factory, or imagenet: before these"

T = TypeVar("T")


class Judge(Protocol):
    """How well pictures show what they should. ``name``: who says so. ``reads``: what a condition is to it."""

    name: str
    reads: type[int] | type[str]

    def scores(self, images: Tensor, wanted: Sequence[Any]) -> Tensor:
        """Of uint8 [B, 3, R, R] and a class or text each: [B], higher is better."""


class Classifier:
    """Log-probability of the class, by a network from uint8 [B, 3, R, R] to logits [B, C]."""

    reads: type[int] | type[str] = int

    def __init__(self, network: nn.Module, name: str, device: torch.device) -> None:
        self.network, self.name, self.device = network.to(device), name, device

    @torch.no_grad()
    def scores(self, images: Tensor, wanted: Sequence[Any]) -> Tensor:
        logits: Tensor = self.network(images.to(self.device))
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(f"{self.name}: expected logits [{len(images)}, C]; got {list(logits.shape)}")
        if not 0 <= min(wanted) <= max(wanted) < logits.shape[1]:
            last = logits.shape[1] - 1
            raise ValueError(f"{self.name}: expected classes from 0 to {last}; got {min(wanted)}..{max(wanted)}")
        places = torch.tensor(list(wanted), dtype=torch.int64, device=logits.device)
        return logits.float().log_softmax(dim=1).gather(1, places[:, None])[:, 0].cpu()


class Reader:
    """Cosine of the picture and its text, by CLIP: for one text, candidates rank by it as by any probability."""

    reads: type[int] | type[str] = str

    def __init__(self, clip: CLIP, name: str, device: torch.device) -> None:
        self.clip, self.name = clip.to(device), name

    def scores(self, images: Tensor, wanted: Sequence[Any]) -> Tensor:
        return self.clip.similarities(images, wanted).cpu()


class OnImageNet(nn.Module):
    """Before a network that was trained on ImageNet as most are: 224x224, mean and deviation of RGB taken out."""

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shift", 255 * torch.tensor(IMAGENET_MEAN, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("scale", 255 * torch.tensor(IMAGENET_DEVIATION, dtype=torch.float32).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((antialiased(images, IMAGENET_SIDE, "bilinear") - self.shift) / self.scale)


def open_judge(spec: str, device: str | torch.device = "cpu") -> Judge:
    """``efficientnet-lite0``, ``clip:DIR``, or a network from uint8 pictures to logits (see :func:`load_module`);
    ``imagenet:`` before it resizes and normalizes for it. ValueError naming what was expected."""
    device = torch.device(device)
    kind, _, rest = spec.partition(":")
    if spec == EFFICIENTNET:
        return Classifier(EfficientNetLogits(load_efficientnet()), EFFICIENTNET, device)
    if kind == "clip" and rest:
        return Reader(load_clip(Path(rest)), f"clip {Path(rest).name}", device)
    if kind == "imagenet" and rest:
        return Classifier(OnImageNet(load_module(rest, device)), name_module(rest), device)
    if "." not in spec and ":" not in spec:
        raise ValueError(f"classifier: expected {EXPECTED}; got {spec!r}")
    return Classifier(load_module(spec, device), name_module(spec), device)


class Pool(Generic[T]):
    """The best ``capacity`` of what is offered; of equal ones, the earlier."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._heap: list[tuple[float, int, T]] = []  # worst first; no two have the same number

    def offer(self, score: float, number: int, item: T) -> None:
        """``number``: how many came before it."""
        entry = (score, -number, item)
        if len(self._heap) < self.capacity:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def best(self) -> list[tuple[float, T]]:
        """(score, item), best first."""
        return [(score, item) for score, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


@dataclass(frozen=True)
class Candidate(Generic[T]):  # no NamedTuple: before Python 3.11 those are not generic
    """A drawn picture, uint8 [3, R, R]; its condition's number; what it should show; and whatever goes with it."""

    group: int
    wanted: Any
    pixels: Tensor
    item: T


@dataclass
class Counters:
    """Scores of all candidates and of those kept: numbers and sums."""

    seen: int = 0
    kept: int = 0
    seen_sum: float = 0.0
    kept_sum: float = 0.0


def candidates_for(kept: int, acceptance: float) -> int:
    """How many to draw, so that ``kept`` of them are the share ``acceptance``, in (0, 1]. ValueError otherwise."""
    if not 0 < acceptance <= 1:
        raise ValueError(f"acceptance: expected above 0 and at most 1; got {acceptance}")
    return math.ceil(kept / acceptance - 1e-9)  # 3 / 0.3 is a little above 10


def best_of(
    candidates: Iterable[Candidate[T]],
    judge: Judge,
    drawn: int,
    kept: int,
    *,
    batch: int = 32,
    counters: Counters | None = None,
) -> Iterator[tuple[float, T]]:
    """The best ``kept`` of each condition's ``drawn`` candidates, best first, as soon as all of them have been seen.

    Candidates may come in any order; at most ``kept`` a condition and a batch are held. ``counters`` takes the scores.
    """
    pools: dict[int, Pool[T]] = {}
    seen: dict[int, int] = {}
    counters = Counters() if counters is None else counters
    for part in _batches(candidates, batch):
        scores = judge.scores(torch.stack([c.pixels for c in part]), [c.wanted for c in part]).tolist()
        for candidate, score in zip(part, scores, strict=True):
            if not math.isfinite(score):
                raise ValueError(f"{judge.name}: expected finite scores; got {score} for {candidate.wanted!r}")
            counters.seen, counters.seen_sum = counters.seen + 1, counters.seen_sum + score
            pool = pools.setdefault(candidate.group, Pool(kept))
            number = seen.get(candidate.group, 0)
            pool.offer(score, number, candidate.item)
            seen[candidate.group] = number + 1
            if number + 1 == drawn:
                for won, item in pools.pop(candidate.group).best():
                    counters.kept, counters.kept_sum = counters.kept + 1, counters.kept_sum + won
                    yield won, item


def _batches(items: Iterable[Candidate[T]], size: int) -> Iterator[list[Candidate[T]]]:
    part: list[Candidate[T]] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part

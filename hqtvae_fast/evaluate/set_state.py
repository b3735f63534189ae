"""What is kept of a set of pictures while it streams by. States of parts add up to the state of the whole.

A part may be any contiguous span: of one process, of one shard, of one machine. A state holds no pictures, only sums,
and features where precision and recall need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add

import torch
from torch import Tensor

from hqtvae_fast.evaluate.class_score import ClassSums
from hqtvae_fast.evaluate.extractors import Extractor
from hqtvae_fast.evaluate.extractors.clip import CLIP
from hqtvae_fast.evaluate.frechet import Moments
from hqtvae_fast.evaluate.pictures import Pictures

BATCH = 64


@dataclass(frozen=True)
class SetState:
    """Of a set, or of parts of it.

    ``moments`` of its features; ``kept``: features [n, d] of pictures ``indices`` [n], in any order; ``similarity``:
    sum over ``captioned`` pictures of the cosine between a picture's and its caption's CLIP embeddings; ``classes``:
    what the network takes the pictures for, where it classifies.
    """

    extractor: str
    resolution: int
    moments: Moments
    indices: Tensor
    kept: Tensor
    similarity: float = 0.0
    captioned: int = 0
    classes: ClassSums | None = None

    def __add__(self, other: SetState) -> SetState:
        own, its = (self.extractor, self.resolution), (other.extractor, other.resolution)
        if own != its:
            raise ValueError(f"expected parts measured alike; got {own} and {its}")
        return SetState(
            *own,
            self.moments + other.moments,
            torch.cat([self.indices, other.indices]),
            torch.cat([self.kept, other.kept]),
            self.similarity + other.similarity,
            self.captioned + other.captioned,
            None if self.classes is None or other.classes is None else self.classes + other.classes,
        )

    def features(self) -> Tensor:
        """The features kept, in the set's order: [n, d]."""
        return self.kept[self.indices.argsort()]

    def clip_score(self) -> float | None:
        """Mean cosine of pictures and captions; None where none were compared."""
        return self.similarity / self.captioned if self.captioned else None


def merge(parts: Iterable[SetState]) -> SetState:
    """The whole's state. ValueError if parts were measured differently, or if there are none."""
    listed = list(parts)
    if not listed:
        raise ValueError("expected at least one part; got none")
    return reduce(add, listed)


def spans(total: int, parts: int) -> list[range]:
    """``parts`` contiguous ranges that together are range(total), of sizes that differ by at most one."""
    edges = [total * part // parts for part in range(parts + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def is_kept(index: int, total: int, limit: int) -> bool:
    """Whether picture ``index`` of ``total`` is among the at most ``limit`` that are spread evenly over the set."""
    return limit >= total or (index + 1) * limit // total > index * limit // total


def features_of(
    extractor: Extractor, images: Tensor, pictures: Pictures, indices: Sequence[int], what: str = "features"
) -> Tensor:
    """The extractor's [B, d], finite. ValueError names the first picture that has others."""
    features = extractor(images)
    require_finite_rows(features, f"{extractor.name}: {what}", pictures, indices)
    return features


def require_finite_rows(values: Tensor, what: str, pictures: Pictures, indices: Sequence[int]) -> None:
    """ValueError, naming the first picture whose row of [B, ...] has a NaN or an infinity."""
    wrong = ~values.isfinite().reshape(len(indices), -1).all(dim=1)
    if bool(wrong.any()):
        picture = pictures.describe(indices[int(wrong.nonzero()[0])])
        raise ValueError(f"{picture}: {what}: expected finite values; got NaN or infinity")


def measure(
    pictures: Pictures,
    extractor: Extractor,
    span: range | None = None,
    *,
    keep: int = 0,
    clip: CLIP | None = None,
    batch: int = BATCH,
    workers: int = 0,
    advance: Callable[[int], None] = lambda done: None,
) -> SetState:
    """The state of a span of pictures (None: of all).

    ``keep``: at most so many features of the whole set are kept, those of pictures evenly spread over it: which ones
    does not depend on the span. ``clip``: compares each picture with its caption. ``advance`` hears of pictures done.
    """
    total = len(pictures)
    moments: Moments | None = None
    numbers: list[int] = []
    kept: list[Tensor] = []
    similarity, captioned = 0.0, 0
    classes: ClassSums | None = None
    for images, indices in pictures.batches(batch, span, workers):
        features = features_of(extractor, images, pictures, indices)
        moments = Moments.of(features) if moments is None else moments + Moments.of(features)
        rows = [row for row, index in enumerate(indices) if is_kept(index, total, keep)]
        numbers += [indices[row] for row in rows]
        kept.append(features[rows].cpu())
        if clip is not None:
            cosines = clip.similarities(images, [pictures.caption(index) for index in indices])
            require_finite_rows(cosines, "CLIP's cosines", pictures, indices)
            similarity, captioned = similarity + float(cosines.double().sum()), captioned + len(indices)
        if extractor.classifier is not None:
            sums = ClassSums.of(extractor.logits(features), indices)
            classes = sums if classes is None else classes + sums
        advance(len(images))
    if moments is None:
        raise ValueError(f"{pictures.name}: expected pictures in {span}; there are none")
    found = torch.tensor(numbers, dtype=torch.int64, device="cpu")
    return SetState(
        extractor.name, pictures.resolution, moments, found, torch.cat(kept), similarity, captioned, classes
    )

"""For each drawn picture the training pictures nearest to it: whether a model recalls or invents.

What is near depends on the distance. ``pixels`` finds copies; features find the same thing drawn otherwise. Both are
told beside each neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hqtvae_fast.evaluate.extractors import Extractor
from hqtvae_fast.evaluate.pictures import Pictures
from hqtvae_fast.pictures.sheet import Cell, Row, Sheet


@dataclass(frozen=True)
class Distance:
    """``vectors``: uint8 [B, 3, R, R] to [B, d]; the distance is |x - y|, times ``scale``, and called ``name``."""

    name: str
    vectors: Callable[[Tensor], Tensor]
    scale: float = 1.0
    form: str = "{:.3f}"


def pixel_distance(resolution: int) -> Distance:
    """Root of the mean squared difference of pixels in 0..255."""
    return Distance("RMS of pixels", lambda images: images.float().flatten(1), (3 * resolution**2) ** -0.5, "{:.1f}")


def feature_distance(extractor: Extractor) -> Distance:
    """Of features of unit length: from 0, the same direction, over 1.41, unrelated, to 2."""
    return Distance(f"unit {extractor.name} features", lambda images: F.normalize(extractor(images), dim=1))


@dataclass(frozen=True)
class Found:
    """Neighbours of each of N pictures, nearest first: ``indices`` and ``distances`` [N, k]."""

    indices: Tensor
    distances: Tensor


def nearest(
    drawn: Tensor,
    training: Pictures,
    distance: Distance,
    k: int,
    *,
    batch: int = 256,
    workers: int = 0,
    advance: Callable[[int], None] = lambda done: None,
) -> Found:
    """Of uint8 [N, 3, R, R], among all training pictures, which stream by: k of each are kept, ties to the earlier."""
    if not 1 <= k <= len(training):
        raise ValueError(f"neighbours: expected 1 to {len(training)}, as there are pictures; got {k}")
    wanted = distance.vectors(drawn).double()
    best = torch.full((len(drawn), 0), torch.inf, dtype=torch.float64, device=wanted.device)
    places = torch.zeros(len(drawn), 0, dtype=torch.int64, device=wanted.device)
    for images, indices in training.batches(batch, workers=workers):
        # Not by products: a copy's distance must be 0, not the root of what cancelled.
        apart = torch.cdist(wanted, distance.vectors(images).double(), compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.tensor(indices, dtype=torch.int64, device=wanted.device).expand(len(drawn), -1)
        best, places = torch.cat([best, apart], dim=1), torch.cat([places, own], dim=1)
        order = best.argsort(dim=1, stable=True)[:, :k]
        best, places = best.gather(1, order), places.gather(1, order)
        advance(len(images))
    return Found(places.cpu(), (best * distance.scale).cpu())


def neighbour_rows(
    drawn: Sequence[Image.Image], captions: Sequence[str], training: Pictures, found: Found, distance: Distance
) -> Image.Image:
    """A column for each drawn picture, above its neighbours with their distances."""
    rows = [Row("drawn", [Cell(image, caption) for image, caption in zip(drawn, captions, strict=True)])]
    for rank in range(found.indices.shape[1]):
        cells = []
        for number in range(len(drawn)):
            picture = picture_at(training, int(found.indices[number, rank]))
            cells.append(Cell(picture, distance.form.format(float(found.distances[number, rank]))))
        unit = f"\n({distance.name})" if rank == 0 else ""
        rows.append(Row(f"{ordinal(rank)} in\ntraining{unit}", cells))
    return Sheet(rows).draw()


def picture_at(pictures: Pictures, index: int) -> Image.Image:
    images, _ = next(iter(pictures.batches(1, range(index, index + 1))))
    return Image.fromarray(images[0].permute(1, 2, 0).numpy())


def ordinal(rank: int) -> str:
    return "nearest" if rank == 0 else {1: "2nd", 2: "3rd"}.get(rank, f"{rank + 1}th") + " nearest"

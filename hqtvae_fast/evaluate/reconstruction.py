"""How well stage 1 gives pictures back: rFID, PSNR, SSIM, and how much of each codebook they use.

Like :mod:`hqtvae_fast.evaluate.set_state`, in states that add up over parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from hqtvae_fast.evaluate.code_use import CodeUse
from hqtvae_fast.evaluate.extractors import Extractor
from hqtvae_fast.evaluate.frechet import Moments, frechet_distance
from hqtvae_fast.evaluate.pictures import Pictures
from hqtvae_fast.evaluate.set_state import BATCH, features_of, require_finite_rows
from hqtvae_fast.pictures.images import psnr
from hqtvae_fast.pipeline import HQTVAEPipeline
from hqtvae_fast.train.codes.stored import StoredCodes


@dataclass(frozen=True)
class ReconstructionState:
    """``originals`` and ``rebuilt``: moments of their features. ``psnr``: sum of dB, ``ssim``: sum, over ``count``
    pictures. ``use``: of the codes."""

    originals: Moments
    rebuilt: Moments
    psnr: float
    ssim: float
    count: int
    use: CodeUse

    def __add__(self, other: ReconstructionState) -> ReconstructionState:
        return ReconstructionState(
            self.originals + other.originals,
            self.rebuilt + other.rebuilt,
            self.psnr + other.psnr,
            self.ssim + other.ssim,
            self.count + other.count,
            self.use + other.use,
        )

    def rfid(self) -> float:
        """Fréchet distance of the pictures and their reconstructions; FID's name is the extractor's to give."""
        return frechet_distance(self.originals.gaussian(), self.rebuilt.gaussian())


def measure_reconstructions(
    pipe: HQTVAEPipeline,
    pictures: Pictures,
    extractor: Extractor,
    span: range | None = None,
    *,
    batch: int = BATCH,
    workers: int = 0,
    stored: StoredCodes | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> ReconstructionState:
    """Of a span of pictures, which must have the model's resolution. Features are of 8-bit pictures, as files are.
    ``stored``: the pictures' codes, in place of encoding them."""
    if pictures.resolution != pipe.config.vae.resolution:
        raise ValueError(f"expected pictures of {pipe.config.vae.resolution} pixels; got {pictures.resolution}")
    state: ReconstructionState | None = None
    for images, indices in pictures.batches(batch, span, workers):
        codes = pipe.encode(images.float() / 127.5 - 1) if stored is None else stored.levels(indices)
        rebuilt: Tensor = pipe.decode(codes, "pt", batch_size=batch)
        require_finite_rows(rebuilt, "its reconstruction", pictures, indices)
        part = ReconstructionState(
            Moments.of(features_of(extractor, images, pictures, indices)),
            Moments.of(features_of(extractor, rounded(rebuilt), pictures, indices, "its reconstruction's features")),
            float(psnr(rebuilt, images.float() / 255).double().sum()),
            float(structural_similarity(rebuilt, images.float() / 255).double().sum()),
            len(images),
            CodeUse.of(codes, pipe.config.vae.codebook_sizes),
        )
        state = part if state is None else state + part
        advance(len(images))
    if state is None:
        raise ValueError(f"{pictures.name}: expected pictures in {span}; there are none")
    return state


def rounded(images: Tensor) -> Tensor:
    """Float images in [0, 1] as bytes, as files hold them."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def structural_similarity(images: Tensor, references: Tensor) -> Tensor:
    """SSIM of float images [B, 3, R, R] in [0, 1]: [B]. ValueError without the ``eval`` extra, which brings it."""
    try:
        image = import_module("torchmetrics.functional.image")
    except ImportError as error:
        raise ValueError(f"SSIM needs the 'eval' extra: pip install 'hqtvae_fast[eval]' ({error})") from error
    return image.structural_similarity_index_measure(images, references, data_range=1.0, reduction="none")

"""How much of each codebook a set of pictures uses; and sets whose codes are stored, in shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.config import VAEConfig
from hqtvae_fast.evaluate.pictures import Pictures, SourcePictures
from hqtvae_fast.model import HQVAE
from hqtvae_fast.pipeline import HQTVAEPipeline
from hqtvae_fast.train.codes.stored import StoredCodes, check_vae, places_of
from hqtvae_fast.train.codes.usage import perplexity
from hqtvae_fast.train.data import CodedPictures, Selection, open_source

BATCH = 256  # pictures whose codes are counted at once


@dataclass(frozen=True)
class CodeUse:
    """``counts``: by level, top first, how often each code was chosen, int64 [K], for so many ``pictures``."""

    counts: tuple[Tensor, ...]
    pictures: int

    @classmethod
    def of(cls, codes: Sequence[Tensor], sizes: Sequence[int]) -> CodeUse:
        """Of maps [B, h, w] a level, top first."""
        counts = (level.flatten().bincount(minlength=size) for level, size in zip(codes, sizes, strict=True))
        return cls(tuple(counts), len(codes[0]))

    def __add__(self, other: CodeUse) -> CodeUse:
        counts = (own + its for own, its in zip(self.counts, other.counts, strict=True))
        return CodeUse(tuple(counts), self.pictures + other.pictures)

    def usage(self) -> list[tuple[float, float]]:
        """By level, top first: share of codes that were chosen at least once, and the perplexity of their use."""
        return [(float((counts > 0).double().mean()), float(perplexity(counts))) for counts in self.counts]


def no_use(config: VAEConfig) -> CodeUse:
    """Of no pictures at all."""
    return CodeUse(tuple(torch.zeros(size, dtype=torch.int64, device="cpu") for size in config.codebook_sizes), 0)


def use_of_pictures(
    pipe: HQTVAEPipeline,
    pictures: Pictures,
    *,
    batch: int = 64,
    workers: int = 0,
    advance: Callable[[int], None] = lambda done: None,
) -> CodeUse:
    """Of pictures that are encoded."""
    use = no_use(pipe.config.vae)
    for images, _ in pictures.batches(batch, workers=workers):
        use += CodeUse.of(pipe.encode(images.float() / 127.5 - 1), pipe.config.vae.codebook_sizes)
        advance(len(images))
    return use


def use_of_stored(
    pictures: CodedPictures,
    config: VAEConfig,
    span: range | None = None,
    *,
    advance: Callable[[int], None] = lambda done: None,
) -> CodeUse:
    """Of a span of coded pictures (None: of all), read from their shards. ValueError where they are not the model's."""
    span, use = range(len(pictures)) if span is None else span, no_use(config)
    stored = StoredCodes(pictures, torch.arange(len(pictures), dtype=torch.int64, device="cpu"), config)
    for first in range(span.start, span.stop, BATCH):
        indices = range(first, min(first + BATCH, span.stop))
        use += CodeUse.of(stored.levels(indices), config.codebook_sizes)
        advance(len(indices))
    return use


def open_codes(paths: str | Sequence[str], vae: HQVAE) -> CodedPictures:
    """Shards of codes that this VAE made. ValueError if there are none, or if another one made them."""
    pictures = open_source(paths, codes=True)
    if not isinstance(pictures, CodedPictures):
        raise ValueError(f"{paths}: expected shards of codes; got pictures")
    check_vae(pictures, vae)
    return pictures


def open_coded(codes: str, reference: Sequence[str], vae: HQVAE) -> tuple[SourcePictures, StoredCodes, int]:
    """Those pictures of a reference that have codes; these, index by index; and how many have none, as they could not
    be read then. ValueError unless the codes are this VAE's, of these pictures, and all shards are there."""
    coded = open_codes(codes, vae)
    if reference[0].endswith(".npz"):
        raise ValueError(f"--codes: expected the pictures that were encoded, a folder or shards; got {reference[0]}")
    source = open_source(reference)
    places = places_of(coded, source)
    there = (places >= 0).nonzero().flatten()
    pictures = SourcePictures(Selection(source, there.tolist()), reference[0], vae.config.resolution)
    return pictures, StoredCodes(coded, places[there], vae.config), len(places) - len(there)

"""What the demo-size ablations are measured by, on held-out pictures and in fp32 on a CPU.

Stage 1: reconstruction and use of codes. Stage 2: the exact negative log-likelihood, in nats, of the codes that HQ-VAE
gives the held-out pictures. Every decoding policy is a distribution over the same codes, so the figures of runs on one
HQ-VAE can be compared, those of runs on different ones cannot. Fréchet distances are on EfficientNet-Lite0's features
(they are not FID), of few pictures, between runs of equal numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.evaluate import Extractor, Gaussian, Moments, Pictures, frechet_distance
from hqtvae_fast.evaluate.pictures import SourcePictures
from hqtvae_fast.evaluate.reconstruction import measure_reconstructions
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.pictures.images import grid, psnr, to_pil

BATCH = 64
SAMPLES = 256
REFERENCE_EVERY = 8
WIDTH = 1280  # of the features


def open_run(folder: Path) -> HQTVAEPipeline:
    return HQTVAEPipeline.from_pretrained(folder / "model", device="cpu", dtype="fp32")


def stage1_figures(pipe: HQTVAEPipeline, pictures: Pictures, extractor: Extractor) -> dict[str, Any]:
    """Means over the pictures: PSNR in dB, SSIM, of top codes alone too; by level the codes in use, and perplexity."""
    state = measure_reconstructions(pipe, pictures, extractor, batch=BATCH)
    usage = state.use.usage()
    return {
        "psnr": state.psnr / state.count,
        "ssim": state.ssim / state.count,
        "psnr_top_only": top_only_psnr(pipe, pictures),
        "frechet": state.rfid(),
        "usage": [share for share, _ in usage],
        "perplexity": [perplexity for _, perplexity in usage],
    }


def top_only_psnr(pipe: HQTVAEPipeline, pictures: Pictures) -> float:
    """Of what top codes alone decode to (figure 3)."""
    total = 0.0
    for images, _ in pictures.batches(BATCH):
        top, *finer = pipe.encode(images.float() / 127.5 - 1)
        rebuilt = pipe.decode([top, *[None] * len(finer)], "pt")
        total += float(psnr(rebuilt, images.float() / 255).sum())
    return total / len(pictures)


@torch.no_grad()
def nats(pipe: HQTVAEPipeline, pictures: Pictures) -> list[float]:
    """By level, top first: mean over the pictures of -log p(codes of the level | coarser ones, earlier ones)."""
    totals = [0.0] * pipe.config.vae.num_levels
    for images, _ in pictures.batches(BATCH):
        codes = pipe.encode(images.float() / 127.5 - 1)
        for level, value in enumerate(_nats_of(pipe, codes)):
            totals[level] += value
    return [total / len(pictures) for total in totals]


def _nats_of(pipe: HQTVAEPipeline, codes: tuple[Tensor, ...]) -> list[float]:
    """Sums over a batch, a level each."""
    assert pipe.transformer is not None
    if pipe.refiner is None:
        return _cross_entropies(pipe.transformer, codes, None)
    prior = _cross_entropies(pipe.transformer, codes[:1], None)
    return prior + _cross_entropies(pipe.refiner, codes[1:], codes[0].flatten(1))


def _cross_entropies(model: HQTransformer, codes: tuple[Tensor, ...], condition: Tensor | None) -> list[float]:
    logits = model(codes, condition).levels
    pairs = zip(logits, codes, strict=True)
    return [float(F.cross_entropy(own.flatten(0, 1), level.flatten(), reduction="sum")) for own, level in pairs]


def label_perplexity(pipe: HQTVAEPipeline, pictures: Pictures, temperature: float = 1.0) -> list[float]:
    """exp of the mean entropy of the soft labels, by level: how many codes a label is spread over."""
    entropies: list[list[Tensor]] = [[] for _ in range(pipe.config.vae.num_levels)]
    for images, _ in pictures.batches(BATCH):
        for own, labels in zip(entropies, pipe.vae.soft_codes(images.float() / 127.5 - 1, temperature), strict=True):
            own.append(torch.special.entr(labels).sum(dim=-1).flatten())
    return [float(torch.cat(own).mean().exp()) for own in entropies]


def reference(pictures: SourcePictures, extractor: Extractor) -> Gaussian:
    """Of every eighth picture: the features of all would take longer than a run."""
    chosen = torch.stack([pictures[index] for index in range(0, len(pictures), REFERENCE_EVERY)])
    return _moments(chosen, extractor).gaussian()


def _moments(pixels: Tensor, extractor: Extractor) -> Moments:
    return sum((Moments.of(extractor(part)) for part in pixels.split(BATCH)), Moments.none(WIDTH))


def sampled(pipe: HQTVAEPipeline, extractor: Extractor, against: Gaussian, sheet: Path) -> float:
    """Fréchet distance of samples at temperature 1, all codes allowed; the first of them go into a sheet."""
    drawn = pipe(num_images=SAMPLES, batch_size=BATCH, seed=0, output_type="pt", progress=False).images
    moments = _moments((drawn * 255).round().clamp(0, 255).to(torch.uint8), extractor)
    grid(to_pil(drawn[:32]), 8).save(sheet)
    return frechet_distance(moments.gaussian(), against)

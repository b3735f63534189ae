"""From states to figures: each with its name, what it was computed on, and what to be careful about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hqtvae_fast.evaluate.extractors import Extractor
from hqtvae_fast.evaluate.frechet import frechet_distance
from hqtvae_fast.evaluate.manifold import K, precision_recall
from hqtvae_fast.evaluate.measure import SetState
from hqtvae_fast.evaluate.reconstruction import ReconstructionState
from hqtvae_fast.evaluate.reference import Reference

SCHEMA = 1
PUBLISHED = 50_000  # pictures behind a published FID


@dataclass(frozen=True)
class Metric:
    """``key``: its name in a results file. ``better``: "higher" or "lower". ``of``: on what it was computed."""

    key: str
    name: str
    value: float
    better: str
    of: str = ""

    def shown(self) -> str:
        return f"{self.value:.4f}" if abs(self.value) < 1 else f"{self.value:.2f}"


def compare(reference: Reference, samples: SetState, extractor: Extractor, k: int = K) -> list[Metric]:
    """Fréchet distance; precision and recall where both sides' features were kept; CLIP-score where captions were."""
    reference.check(extractor, len(samples.moments.mean), "reference")
    known = f"{reference.gaussian.count:,}" if reference.gaussian.count else "an unknown number of"
    of = f"{samples.moments.count:,} samples, {known} references"
    distance = frechet_distance(reference.gaussian, samples.moments.gaussian())
    metrics = [Metric("frechet", extractor.distance_name, distance, "lower", of)]
    if reference.features is not None and len(samples.kept):
        features = samples.features().to(extractor.device)
        found = precision_recall(reference.features.to(extractor.device), features, k)
        of = f"{len(features):,} samples, {len(reference.features):,} references, k={k}, {extractor.name}"
        metrics.append(Metric("precision", "precision", found.precision, "higher", of))
        metrics.append(Metric("recall", "recall", found.recall, "higher", of))
    score = samples.clip_score()
    if score is not None:
        metrics.append(Metric("clip_score", "CLIP-score", score, "higher", f"{samples.captioned:,} captions"))
    return metrics


def judge(state: ReconstructionState, extractor: Extractor) -> list[Metric]:
    """Of reconstructions."""
    of = f"{state.count:,} pictures"
    name = "rFID" if extractor.is_fid else f"reconstruction {extractor.distance_name}"
    metrics = [
        Metric("reconstruction_frechet", name, state.rfid(), "lower", of),
        Metric("psnr", "PSNR, dB", state.psnr / state.count, "higher", of),
        Metric("ssim", "SSIM", state.ssim / state.count, "higher", of),
    ]
    for level, (share, perplexity) in enumerate(state.usage()):
        size = f"{len(state.codes[level]):,} codes"
        metrics.append(Metric(f"usage_{level}", f"level {level}: share of codes used", share, "higher", size))
        metrics.append(Metric(f"perplexity_{level}", f"level {level}: perplexity", perplexity, "higher", size))
    return metrics


def cautions(count: int, width: int, extractor: Extractor) -> list[str]:
    """What a reader of the distance must know; empty for a published protocol's number of pictures."""
    found = []
    if not extractor.is_fid:
        found.append(f"this Fréchet distance is of {extractor.name}: it is not FID and must not be compared with one")
    if count <= width:
        found.append(
            f"{count:,} pictures for features {width:,} wide: their covariance has no full rank and the distance is"
            f" far too high; more than {width:,} are expected, compare only equal numbers of pictures"
        )
    elif count < PUBLISHED:
        found.append(f"{count:,} pictures: published figures are of {PUBLISHED:,}, and fewer give a higher distance")
    return found


def document(metrics: Sequence[Metric], facts: dict[str, Any]) -> dict[str, Any]:
    """The JSON form of a results file: ``metrics`` by key, and what they are of."""
    return {"schema": SCHEMA, "kind": "evaluation", **facts, "metrics": {m.key: asdict(m) for m in metrics}}

"""From states to figures: each with its name, what it was computed on, and what to be careful about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hqtvae_fast.config import level_names
from hqtvae_fast.evaluate.code_use import CodeUse
from hqtvae_fast.evaluate.extractors import Extractor
from hqtvae_fast.evaluate.frechet import frechet_distance
from hqtvae_fast.evaluate.kernel_distance import kernel_distance
from hqtvae_fast.evaluate.manifold import K, precision_recall
from hqtvae_fast.evaluate.reconstruction import ReconstructionState
from hqtvae_fast.evaluate.reference import Reference
from hqtvae_fast.evaluate.set_state import SetState

SCHEMA = 1
PUBLISHED = 50_000  # pictures behind a published FID


@dataclass(frozen=True)
class Metric:
    """``key``: its name in a results file. ``better``: "higher" or "lower". ``of``: on what it was computed.
    ``deviation``: over draws or splits, where it is a mean of such."""

    key: str
    name: str
    value: float
    better: str
    of: str = ""
    deviation: float | None = None

    def shown(self) -> str:
        digits = 4 if abs(self.value) < 1 else 2
        spread = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.value:.{digits}f}{spread}"


def compare(reference: Reference | None, samples: SetState, extractor: Extractor, k: int = K) -> list[Metric]:
    """Against a reference: Fréchet distance; kernel distance, precision and recall where both sides' features were kept
    and are enough (see :func:`left_out`). Of samples alone: class score, CLIP-score where captions were compared."""
    metrics = [] if reference is None else _distances(reference, samples, extractor, k)
    if samples.classes is not None:
        score, deviation = samples.classes.score()
        of = f"{samples.moments.count:,} samples, {samples.classes.shares.shape[1]:,} classes"
        metrics.append(Metric("class_score", extractor.score_name, score, "higher", of, deviation))
    clip = samples.clip_score()
    if clip is not None:
        metrics.append(Metric("clip_score", "CLIP-score", clip, "higher", f"{samples.captioned:,} captions"))
    return metrics


def _distances(reference: Reference, samples: SetState, extractor: Extractor, k: int) -> list[Metric]:
    reference.check(extractor, len(samples.moments.mean), "reference")
    known = f"{reference.gaussian.count:,}" if reference.gaussian.count else "an unknown number of"
    of = f"{samples.moments.count:,} samples, {known} references"
    distance = frechet_distance(reference.gaussian, samples.moments.gaussian())
    metrics = [Metric("frechet", extractor.distance_name, distance, "lower", of)]
    if reference.features is None or not len(samples.kept):
        return metrics
    theirs, own = reference.features.to(extractor.device), samples.features().to(extractor.device)
    of = f"{len(own):,} samples, {len(theirs):,} references"
    if _fewest(reference, samples) >= 2:
        kernel = kernel_distance(theirs, own)
        draws = f"{of}, {kernel.subsets} draws of {kernel.size:,}"
        metrics.append(Metric("kernel", extractor.kernel_name, kernel.mean, "lower", draws, kernel.deviation))
    if _fewest(reference, samples) > k:
        found = precision_recall(theirs, own, k)
        of = f"{of}, k={k}, {extractor.name}"
        metrics.append(Metric("precision", "precision", found.precision, "higher", of))
        metrics.append(Metric("recall", "recall", found.recall, "higher", of))
    return metrics


def _fewest(reference: Reference, samples: SetState) -> int:
    """Features kept of the set that has fewer."""
    return min(0 if reference.features is None else len(reference.features), len(samples.kept))


def left_out(reference: Reference | None, samples: SetState, k: int) -> list[str]:
    """What :func:`compare` does not compute of the features that were kept, and why."""
    fewest = 0 if reference is None else _fewest(reference, samples)
    if fewest == 0 or fewest > k:
        return []
    return [f"no precision and recall: expected more than k={k} pictures in each set; got {fewest}"]


def judge(state: ReconstructionState, extractor: Extractor) -> list[Metric]:
    """Of reconstructions."""
    of = f"{state.count:,} pictures"
    name = "rFID" if extractor.is_fid else f"reconstruction {extractor.distance_name}"
    metrics = [
        Metric("reconstruction_frechet", name, state.rfid(), "lower", of),
        Metric("psnr", "PSNR, dB", state.psnr / state.count, "higher", of),
        Metric("ssim", "SSIM", state.ssim / state.count, "higher", of),
    ]
    return metrics + judge_use(state.use)


def judge_use(use: CodeUse) -> list[Metric]:
    """Of codes."""
    metrics = []
    names = level_names(len(use.counts))
    for level, (name, (share, perplexity)) in enumerate(zip(names, use.usage(), strict=True)):
        size = f"{len(use.counts[level]):,} codes"
        metrics.append(Metric(f"usage_{level}", f"{name} codes: share used", share, "higher", size))
        metrics.append(Metric(f"perplexity_{level}", f"{name} codes: perplexity", perplexity, "higher", size))
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
    """The JSON form of a results file: ``metrics`` by key, and what they are of. What is not finite (the PSNR of equal
    pictures) is null: JSON has no such numbers."""
    rows = {metric.key: asdict(metric) for metric in metrics}
    for row in rows.values():
        row |= {name: None for name in ("value", "deviation") if row[name] is None or not math.isfinite(row[name])}
    return {"schema": SCHEMA, "kind": "evaluation", **facts, "metrics": rows}

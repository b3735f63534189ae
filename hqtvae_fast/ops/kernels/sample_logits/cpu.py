"""The same draw as the reference's, on a CPU in less than half the time: score all codes roughly, then a few exactly.

The reference's logarithms are sixty passes over [B, K], fixed bit for bit; the processor's own logarithm is one pass
with another last bit. Both are within a few units in the last place of the true variate, so whatever wins by the exact
scores is among those whose rough score comes within ``MARGIN`` of the best. Those few, mostly one a row, are scored
again by the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops import cpu_library
from hqtvae_fast.ops.kernels.sample_logits.noise import gumbel, random_words
from hqtvae_fast.ops.kernels.sample_logits.reference import NEG_INF, filter_logits

# A Gumbel variate lies within (-2.9, 22.9), where a unit in the last place is at most 2e-6; the two ways of computing
# it differ by one such unit (a test looks at 2^19 words of each end). Adding a logit rounds by 2^-24 of the sum, once a
# side.
MARGIN, RELATIVE_MARGIN = 4e-5, 2.0**-21
FLT_MAX = torch.finfo(torch.float32).max  # keeps the margin of an infinite logit a number


def why_not(logits: Tensor, *others: Tensor) -> str | None:
    """None where this way is the faster one, else the reason."""
    return None if logits.device.type == "cpu" else f"expected logits on the CPU; got {logits.device}"


def sample_logits(
    logits_BK: Tensor,
    temperature: Tensor | float,
    top_k: int | None,
    top_p: float | None,
    seeds_B: Tensor,
    step: Tensor | int,
    position: Tensor | int,
) -> Tensor:
    """:func:`reference.sample_logits`, bit for bit, for CPU tensors without NaN."""
    if top_k == 1:
        return logits_BK.argmax(dim=1)
    scaled_BK = filter_logits(logits_BK, temperature, top_k, top_p)
    words_BK = compiled_words(seeds_B, step, position, logits_BK.shape[1])
    rough_BK = _rough_gumbel(words_BK).add_(scaled_BK)
    best_B1 = rough_BK.amax(dim=1, keepdim=True)
    near_BK = rough_BK >= best_B1 - (MARGIN + RELATIVE_MARGIN * best_B1.abs().clamp_max(FLT_MAX))
    rows, columns = near_BK.nonzero(as_tuple=True)
    if len(rows) == len(logits_BK):  # one a row
        return columns
    exact_BK = torch.full_like(rough_BK, NEG_INF)
    exact_BK[rows, columns] = scaled_BK[rows, columns] + gumbel(words_BK[rows, columns])
    return exact_BK.argmax(dim=1)


def compiled_words(seeds_B: Tensor, step: Tensor | int, position: Tensor | int, count: int) -> Tensor:
    """:func:`random_words`, by the compiled kernel where there is one: one pass instead of ninety."""
    kernels, _ = cpu_library.load()
    if kernels is None:
        return random_words(seeds_B, step, position, count)
    words_BK = seeds_B.new_empty(len(seeds_B), count, dtype=torch.int64)
    seeds_B = seeds_B.contiguous()
    steps_B, positions_B = (torch.zeros_like(seeds_B).add_(value) for value in (step, position))
    kernels.hqtvae_philox_words(
        *(cpu_library.buffer(x, torch.int64, len(seeds_B)) for x in (seeds_B, steps_B, positions_B)),
        *(cpu_library.buffer(words_BK, torch.int64, len(seeds_B) * count), *words_BK.shape),
    )
    return words_BK


def _rough_gumbel(words_BK: Tensor) -> Tensor:
    """-ln(-ln(1 - v)), v as in :func:`gumbel`."""
    v = words_BK.to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_max_(1.0 - 2.0**-24)
    return v.neg_().log1p_().neg_().log_().neg_()

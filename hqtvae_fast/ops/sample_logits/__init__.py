"""Drawing codes from logits."""

from __future__ import annotations

import math

from torch import Tensor

from hqtvae_fast.ops.sample_logits import cpu, reference


def check_sampling(temperature: float, top_k: int | None, top_p: float | None, num_codes: int) -> None:
    """ValueError unless temperature > 0, 1 <= k <= K and 0 < p <= 1 (None switches a filter off)."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: expected a number > 0; got {temperature}")
    if top_k is not None and (isinstance(top_k, bool) or int(top_k) != top_k or not 1 <= top_k <= num_codes):
        raise ValueError(f"top_k: expected an integer from 1 to {num_codes}, or None; got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], or None; got {top_p}")


def sample_logits(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seeds: Tensor,
    step: Tensor | int,
    position: Tensor | int,
) -> Tensor:
    """Draw one index from each row of logits.

    ``logits`` [B, K], floating point; ``seeds`` int64 [B]; ``step`` and ``position`` integers or int64 [B]. Returns
    int64 [B]. Logits over temperature, then top-k (ties at the k-th value stay), softmax, top-p (up to and including
    the entry at which the cumulative sum reaches p), then a draw with noise that depends on (seed, step, position,
    index) alone. ``top_k=1`` is argmax, ties to the lowest index. Raises ValueError on parameters out of range, and on
    NaN logits on the CPU; on other devices a row with NaN gives an unspecified index within [0, K), without a
    synchronisation.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits: expected [B, K]; got {list(logits.shape)}")
    if tuple(seeds.shape) != (logits.shape[0],):
        raise ValueError(f"seeds: expected [{logits.shape[0]}]; got {list(seeds.shape)}")
    check_sampling(temperature, top_k, top_p, logits.shape[1])
    if logits.device.type == "cpu":
        wrong = logits.amax(dim=1).isnan()  # a maximum carries NaN on
        if bool(wrong.any()):
            raise ValueError(f"logits: expected numbers, got NaN in row {int(wrong.nonzero()[0])}")
        return cpu.sample_logits(logits, temperature, top_k, top_p, seeds, step, position)
    return reference.sample_logits(logits, temperature, top_k, top_p, seeds, step, position)


__all__ = ["check_sampling", "sample_logits"]

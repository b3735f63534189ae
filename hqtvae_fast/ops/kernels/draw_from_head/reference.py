"""The product, its logits stored, then the draw from them: the definition that the fused kernels are held to."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.sample_logits import sample_logits


def draw_from_head(x_BGD: Tensor, weight_KD: Tensor, *others: Tensor) -> None:
    """The definition: :func:`product_then_draw` with the draw's own definition."""
    product_then_draw(x_BGD, weight_KD, *others, backend="reference")


def product_then_draw(
    x_BGD: Tensor,
    weight_KD: Tensor,
    out_BG: Tensor,
    invalid: Tensor,
    seeds_B: Tensor,
    step: Tensor,
    position: Tensor,
    temperature: Tensor,
    *,
    backend: str | None,
) -> None:
    """``backend``: of the draw alone. NaN is reported and not raised."""
    logits_BGK = F.linear(x_BGD, weight_KD)
    wrong_BGK = logits_BGK.isnan()
    invalid |= wrong_BGK.any()
    options = {"temperature": temperature, "seeds": seeds_B, "step": step, "position": position, "out": out_BG}
    sample_logits(logits_BGK.masked_fill(wrong_BGK, float("-inf")), backend=backend, **options)

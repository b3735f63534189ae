"""The product by torch, then the draw by whichever backend of ``sample_logits`` is best for it."""

from __future__ import annotations

from torch import Tensor

from hqtvae_fast.ops.kernels.draw_from_head.reference import product_then_draw


def draw_from_head(x_BGD: Tensor, weight_KD: Tensor, *others: Tensor) -> None:
    """As :func:`reference.draw_from_head`, with the draw of that op's own order."""
    product_then_draw(x_BGD, weight_KD, *others, backend=None)

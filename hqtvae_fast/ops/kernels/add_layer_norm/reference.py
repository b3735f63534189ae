"""The same in plain torch: the definition, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def add_layer_norm(
    x: Tensor, added: Tensor | None, bias: Tensor | None, weight: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide)
    for part in (added, bias):
        if part is not None:
            total = total + part.to(wide)
    # A copy of its own: an operator may not return its input. Contiguous, as the kernel's is.
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(total)
    normal = torch.nn.functional.layer_norm(total.to(wide), (x.shape[-1],), weight.to(wide), shift.to(wide), eps)
    return total, normal.to(x.dtype)

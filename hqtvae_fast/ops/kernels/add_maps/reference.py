"""The same in plain torch: the definition, in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def add_maps(x: Tensor, residual: Tensor, shift: Tensor) -> Tensor:
    """Summed in fp32 at least, rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) + residual.to(wide)).add_(shift.to(wide)[:, None, None]).to(x.dtype)

"""The same in plain torch: the definition, in any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor | None, form: str) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide).contiguous()
    if bias is not None:
        y = y + bias.to(wide)
    y = F.gelu(y) if form == "exact" else y * torch.sigmoid(1.702 * y)
    return y.to(x.dtype)

"""The plain convolution, torch's; of a doubled map the folded one."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.upsample_conv import upsample_conv


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor | None = None, made: Any = None
) -> Tensor:
    return upsample_conv(x, weight, bias) if doubled else F.conv2d(x, weight, bias, padding=1)

"""oneDNN's blocked layout of a weight, made once instead of in each call."""

from __future__ import annotations

import torch
from torch import Tensor

# oneDNN chooses a layout for a number of rows; a sampling step has few (the batch, or four times it).
ROWS = 8


SMALL = 1 << 18
"""Bytes of an fp32 weight up to which plain rows are the faster ones: a product of torch's takes 6 us where oneDNN's
call alone takes 18 (8 rows x 64 x 256, 64 KB); at 576 KB both take 40 (EPYC, one thread)."""


class OneDNNWeight:
    """A weight [out, in], fp32 or bf16, in the layout that oneDNN picks for few rows.

    It streams about 1.5 times faster than a plain row-major bf16 matrix and 3 times faster than an fp32 one (EPYC with
    AVX512-BF16, 2 cores, 8 rows x 1536 x 6144).
    """

    def __init__(self, weight: Tensor, *quantized: Tensor) -> None:
        self.dtype = weight.dtype
        self._blocked = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self._blocked, bias, "none", [], "")

    def gelu(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """x*Phi(x) of the result, in the same pass."""
        return torch.ops.mkldnn._linear_pointwise(input, self._blocked, bias, "gelu", [], "none")


def why_not(weight: Tensor, *quantized: Tensor) -> str | None:
    """None where oneDNN can pack this weight, else the reason."""
    if weight.device.type != "cpu":
        return f"the weight is on {weight.device}, not on the CPU"
    if not torch.backends.mkldnn.is_available():
        return "torch was built without oneDNN"
    if weight.dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN does not compute in bf16 on this processor"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"expected fp32 or bf16; got {weight.dtype}"
    if weight.dtype is torch.float32 and weight.nbytes <= SMALL:
        return f"expected more than {SMALL} bytes of fp32; got {weight.nbytes}"
    return None

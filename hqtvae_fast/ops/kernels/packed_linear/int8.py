"""An int8 weight for :func:`hqtvae_fast.ops.int8_linear`, which rounds the inputs of a product to 8 bits too."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.int8_linear import int8_linear, native, pack

DTYPES = (torch.float32, torch.bfloat16)


class Int8Weight:
    """``weight`` [out, in] gives the inputs' dtype alone: its numbers are ``stored`` int8 times ``scale`` fp32."""

    def __init__(self, weight: Tensor, stored: Tensor, scale: Tensor) -> None:
        self.dtype, self.stored, self.scale = weight.dtype, stored, scale
        self.panels = pack(stored, scale)

    def linear(self, input: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
        return int8_linear(input, self.stored, self.scale, bias, gelu=gelu, panels=self.panels)

    def gelu(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """x*Phi(x) of the result, in the same pass."""
        return self.linear(input, bias, True)


def why_not(weight: Tensor, stored: Tensor | None = None, scale: Tensor | None = None) -> str | None:
    """None where the kernel can take this weight, else the reason."""
    if stored is None or stored.dtype is not torch.int8:
        return f"expected a weight that is quantized to int8; got {weight.dtype if stored is None else stored.dtype}"
    if weight.dtype not in DTYPES:
        return f"expected inputs in fp32 or bf16; got {weight.dtype}"
    return native.why_not_pack(stored)

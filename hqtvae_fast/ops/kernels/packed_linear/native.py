"""Our own kernel for few rows of bf16 (csrc/cpu/linear_bf16.cpp), where it is built and the processor can run it.

It is an operator of torch, ``hqtvae_fast::linear_bf16(packed, x, bias, gelu)``: packed [out / 32, in / 2, 32, 2],
x [..., in], bias [out] or None -> [..., out], all bf16 on the CPU; no gradient; ``gelu`` takes x*Phi(x) of the result.
fp32 sums in order of the inputs, then one rounding: |y - exact| <= 2^-8 |exact| + in * 2^-23 * (sum |x w| + |b|). A
row's result does not depend on how many rows there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.cpu_library import buffer, library, why_not_bf16
from hqtvae_fast.ops.operator import operators

PANEL = 32  # outputs in a panel of the packed layout


def why_not(weight: Tensor, *quantized: Tensor) -> str | None:
    """None where the kernel can take this weight [out, in], else the reason."""
    if weight.device.type != "cpu":
        return f"the weight is on {weight.device}, not on the CPU"
    if weight.dtype is not torch.bfloat16:
        return f"expected bf16; got {weight.dtype}"
    if weight.shape[0] % PANEL or weight.shape[1] % 2:
        return f"expected outputs in {PANEL}s and an even number of inputs; got {tuple(weight.shape)}"
    return why_not_bf16()


class NativeWeight:
    """A weight [out, in], laid out for the kernel. A ValueError says why where :func:`why_not` has a reason."""

    dtype = torch.bfloat16

    def __init__(self, weight: Tensor, *quantized: Tensor) -> None:
        reason = why_not(weight)
        if reason is not None:
            raise ValueError(f"kernel for skinny products in bf16: {reason}")
        weight = weight.contiguous()
        out_features, in_features = weight.shape
        self.packed = weight.new_empty(out_features // PANEL, in_features // 2, PANEL, 2)
        source, packed = (buffer(x, self.dtype, out_features * in_features) for x in (weight, self.packed))
        library().hqtvae_linear_bf16_pack(source, packed, out_features, in_features)

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.hqtvae_fast.linear_bf16.default(self.packed, input, bias, False)

    def gelu(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """x*Phi(x) of the result, in the same pass."""
        return torch.ops.hqtvae_fast.linear_bf16.default(self.packed, input, bias, True)


operators.define("linear_bf16(Tensor packed, Tensor x, Tensor? bias, bool gelu) -> Tensor")


def _multiply(packed: Tensor, x: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    out_features, in_features = packed.shape[0] * PANEL, packed.shape[1] * 2
    x, bf16, rows = x.contiguous(), torch.bfloat16, x.numel() // in_features
    y, scratch = x.new_empty((*x.shape[:-1], out_features)), torch.empty_like(x)
    library().hqtvae_linear_bf16(
        *(buffer(packed, bf16, out_features * in_features), buffer(x, bf16, rows * in_features)),
        None if bias is None else buffer(bias, bf16, out_features),
        *(buffer(y, bf16, rows * out_features), buffer(scratch, bf16, rows * in_features)),
        *(rows, out_features, in_features, gelu),
    )
    return y


operators.impl("linear_bf16", _multiply, "CPU")


@torch.library.register_fake("hqtvae_fast::linear_bf16")
def _fake(packed: Tensor, x: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0] * PANEL))

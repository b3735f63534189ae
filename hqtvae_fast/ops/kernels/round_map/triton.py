"""Launching the Triton kernel that rounds maps to 8 bits (:mod:`.triton_kernels`)."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.kernels.round_map.reference import FORMS
from hqtvae_fast.ops.triton_launch import capability_at_least, launch, on

BLOCK, WARPS = 4096, 8  # 16 values a thread, two 16-byte loads in bf16 and one 16-byte store
FP8_CAPABILITY = (8, 9)


def why_not_form(x: Tensor, form: str) -> str | None:
    """None where a GPU's kernel can write these numbers, else the reason."""
    if form == "fp8" and not capability_at_least(x, FP8_CAPABILITY):
        return "expected compute capability 8.9 or above for fp8"
    return "expected int8 or fp8 on a GPU; got uint8" if form == "uint8" else None


def why_not(
    x: Tensor, residual: Tensor | None, shift: Tensor | None, form: str, scale: float = 1.0, zero: int = 0
) -> str | None:
    """None where the kernel can take this map, else the reason."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        return f"expected channels-last memory; got strides {x.stride()} for {list(x.shape)}"
    if residual is not None and residual.stride() != x.stride():
        return f"residual: expected strides {x.stride()} as x; got {residual.stride()}"
    if x.numel() >= 2**31 * BLOCK:
        return f"expected fewer than 2^31 blocks of {BLOCK} values; got {list(x.shape)}"
    return why_not_form(x, form) or triton_launch.why_not(x, residual, shift)


def describe(x: Tensor, *rest: object) -> dict[str, str]:
    """How the kernel would be launched on these inputs."""
    return {"tile": f"{BLOCK} values, {WARPS} warps", "programs": str(-(-x.numel() // BLOCK))}


def round_map(x: Tensor, residual: Tensor | None, shift: Tensor | None, form: str, scale: float, zero: int) -> Tensor:
    """As :func:`reference.round_map`."""
    from hqtvae_fast.ops.kernels.round_map import triton_kernels

    numbers, size = torch.empty_like(x, dtype=FORMS[form].dtype), x.numel()
    with on(x):
        launch(
            triton_kernels.round_kernel,
            (-(-size // BLOCK),),
            *(x, x if residual is None else residual, x if shift is None else shift.contiguous(), numbers),
            *(size, x.shape[1], 1.0 / scale, zero),
            ADD=residual is not None,
            SHIFT=shift is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return numbers

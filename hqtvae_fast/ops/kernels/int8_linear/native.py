"""Our own kernel for CPUs (csrc/cpu/linear_int8.cpp), with AVX512-VNNI or AVX2."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.cpu_library import buffer, library, load
from hqtvae_fast.ops.kernels.int8_linear.reference import GROUP

PANEL = 16  # outputs in a panel of the packed layout
STEP = 4  # inputs are up to a whole number of these
INSTRUCTIONS = {1: "AVX2", 2: "AVX512-VNNI"}


@cache
def instructions() -> int:
    """The best of :data:`INSTRUCTIONS` that this processor and build have; 0: none."""
    kernels, _ = load()
    return 0 if kernels is None else kernels.hqtvae_int8_instructions()


def why_not_pack(weight: Tensor) -> str | None:
    """None where the kernel can take this weight, else the reason."""
    if weight.device.type != "cpu":
        return f"the weight is on {weight.device}, not on the CPU"
    return load()[1] or (None if instructions() else "this processor has neither AVX2 nor AVX512-VNNI")


def why_not(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, packed: Tensor | None, *rest: object
) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    if x.device.type != "cpu":
        return f"expected tensors on the CPU; got {x.device}"
    return why_not_pack(weight) if packed is not None else "expected a packed weight"


def pack(weight: Tensor, scale: Tensor, using: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`hqtvae_fast.ops.kernels.int8_linear.Panels`. ``using``: one of :data:`INSTRUCTIONS`, whose layouts
    differ; None: the best."""
    (N, K), weight = weight.shape, weight.contiguous()
    padded, steps = N + -N % PANEL, -(-K // STEP)
    packed = torch.empty(padded * steps * STEP, dtype=torch.int8, device="cpu")
    totals = torch.empty(padded * -(-K // GROUP), dtype=torch.int16, device="cpu")
    library().hqtvae_linear_int8_pack(
        *(buffer(weight, torch.int8, N * K), buffer(packed, torch.int8, packed.numel())),
        *(buffer(totals, torch.int16, totals.numel()), N, K, instructions() if using is None else using),
    )
    return packed, F.pad(scale, (0, padded - N)), totals


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    packed: Tensor,
    padded_scale: Tensor,
    totals: Tensor,
    gelu: bool,
    using: int | None = None,
) -> Tensor:
    """``using``: as for :func:`pack`."""
    (N, K), kernels, x = weight.shape, library(), x.contiguous()
    rows, padded = x.numel() // K, N + -N % PANEL
    room = kernels.hqtvae_linear_int8_scratch_bytes(rows, K)
    y = x.new_empty(*x.shape[:-1], N)
    scratch = torch.empty(room, dtype=torch.uint8, device="cpu")
    kernels.hqtvae_linear_int8(
        *(buffer(packed, torch.int8, padded * -(-K // STEP) * STEP), buffer(padded_scale, torch.float32, padded)),
        *(buffer(totals, torch.int16, padded * -(-K // GROUP)), buffer(x, x.dtype, rows * K)),
        None if bias is None else buffer(bias, x.dtype, N),
        *(buffer(y, x.dtype, rows * N), buffer(scratch, torch.uint8, room)),
        *(rows, N, K, x.dtype is torch.bfloat16, gelu, instructions() if using is None else using),
    )
    return y

"""Our own kernel for channels-last fp32 maps on a CPU (csrc/cpu/winograd.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.cpu_library import buffer, library, load
from hqtvae_fast.ops.cpu_maps import in_large_pages
from hqtvae_fast.ops.kernels.winograd_conv import reference
from hqtvae_fast.ops.kernels.winograd_conv.transforms import POINTS


def why_not(x: Tensor, *rest: object) -> str | None:
    """None where the kernel can take this map, else the reason."""
    if x.device.type != "cpu" or x.dtype is not torch.float32:
        return f"expected fp32 on the CPU; got {x.dtype} on {x.device}"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return f"expected channels-last memory; got strides {x.stride()} for {list(x.shape)}"
    return load()[1] or None


def winograd_conv(x: Tensor, transformed: Tensor, bias: Tensor, doubled: bool) -> Tensor:
    """As :func:`reference.winograd_conv`."""
    B, C, H, W = x.shape
    kernels, threads, N = library(), torch.get_num_threads(), len(bias)
    out = in_large_pages(reference.empty_output(x, bias, doubled))
    transformed, bias, zeros = (
        transformed.contiguous(),
        bias.contiguous(),
        torch.zeros(C, dtype=x.dtype, device=x.device),
    )
    scratch = torch.empty(threads * kernels.hqtvae_winograd_scratch(C, N), dtype=x.dtype, device=x.device)
    sizes = (B * C * H * W, POINTS * (4 if doubled else 1) * N * C, N, C)
    inputs = zip((x, transformed, bias, zeros), sizes, strict=True)
    outputs = ((scratch, threads * kernels.hqtvae_winograd_scratch(C, N)), (out, out.numel()))
    kernels.hqtvae_winograd(
        *(buffer(tensor, torch.float32, size) for tensor, size in (*inputs, *outputs)),
        *(B, H, W, C, N, threads, doubled),
    )
    return out

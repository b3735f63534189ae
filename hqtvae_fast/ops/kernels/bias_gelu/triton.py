"""Launching the Triton kernel of bias and GELU (:mod:`.triton_kernels`)."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops import triton_launch
from hqtvae_fast.ops.triton_launch import dense, launch, on, rows

BLOCK, WARPS = 1024, 4  # 16 bytes a thread in bf16. Not yet measured on a GPU.


def why_not(x: Tensor, bias: Tensor | None, form: str) -> str | None:
    """None where the kernel can take these inputs, else the reason."""
    return triton_launch.why_not(x, bias)


def bias_gelu(x: Tensor, bias: Tensor | None, form: str) -> Tensor:
    from hqtvae_fast.ops.kernels.bias_gelu import triton_kernels

    D = x.shape[-1]
    x_MD = rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        with on(x):
            launch(
                triton_kernels.bias_gelu_kernel,
                (x_MD.shape[0], -(-D // BLOCK)),
                *(x_MD, *dense(bias), out, D, x_MD.stride(0)),
                EXACT=form == "exact",
                BLOCK=BLOCK,
                num_warps=WARPS,
            )
    return out

"""torch's own causal attention on q/k/v as our projection lays them out: [B, T, 3, H, E] -> [B, T, H, E]."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Which of its kernels, where not its own choice."""
HALF = (torch.bfloat16, torch.float16)
ON_GPUS = {"flash": HALF, "efficient": (*HALF, torch.float32), "cudnn": HALF, "math": (*HALF, torch.float32)}
ON_CPUS = ("flash", "math")


def why_not(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    scales: Tensor | None = None,
    tile: SDPBackend | None = None,
) -> str | None:
    """None where the kernel takes such queries, keys and values, else the reason."""
    name = next((name for name, kernel in KERNELS.items() if kernel is tile), None)
    if name is None:
        return None
    if not qkv.is_cuda:
        return None if name in ON_CPUS else f"expected tensors on a CUDA device; got {qkv.device}"
    if qkv.dtype not in ON_GPUS[name]:
        return f"expected one of {', '.join(map(str, ON_GPUS[name]))}; got {qkv.dtype}"
    return None if qkv.shape[-1] % 8 == 0 else f"expected heads in multiples of 8; got {qkv.shape[-1]}"


def attend(qkv: Tensor, tile: SDPBackend | None = None) -> Tensor:
    q_BHTE, k_BHTE, v_BHTE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    with nullcontext() if tile is None else sdpa_kernel(tile):
        return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True).transpose(1, 2)

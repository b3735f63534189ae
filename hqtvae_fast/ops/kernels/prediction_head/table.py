"""What the CUDA kernel finds in device memory: where the weights are, and its work space (csrc/cuda/head_table.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.prediction_head.weights import BOTTOMS, LAYER_NORM_EPS, LEVEL_NAMES, LEVELS, HeadWeights

MOST_IMAGES = 16
MOST_CODES = 8192
MOST_ROWS = MOST_IMAGES * BOTTOMS
HEAD_WIDTH = 64
CHUNK = {"plain": 256, "int8": 512, "fp8": 512}
"""Inputs that the kernel takes at a time: 512 bytes of a row."""
ALIGNMENT = 16


def why_not(weights: HeadWeights, num_heads: int) -> str | None:
    """None where the kernel can run this head, else the reason."""
    D = len(weights.start)
    if weights.start.dtype is not torch.bfloat16:
        return f"expected weights in bf16; got {weights.start.dtype}"
    if weights.stored is None:
        return "expected all matrices in bf16, all in int8 or all in fp8; got several of these"
    chunk = CHUNK[weights.stored]
    if D % chunk != 0 or num_heads * HEAD_WIDTH != D:
        return f"expected heads of {HEAD_WIDTH} and a width divisible by {chunk}; got {num_heads} heads, width {D}"
    codes = max(len(level.logits) for level in weights.levels)
    if codes > MOST_CODES:
        return f"expected at most {MOST_CODES} codes; got {codes}"
    for name, tensor in weights.named().items():
        if tensor is not None and (not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT != 0):
            return f"{name}: expected contiguous values at an address divisible by {ALIGNMENT}"
    return None


@dataclass(frozen=True)
class HeadTable:
    """``table`` int64 [n] as the kernel reads it; it holds addresses, so what they point to is kept here too."""

    table: Tensor
    buffer: Tensor
    barrier: Tensor
    weights: HeadWeights
    stored: str
    """How the matrices are: one of :data:`hqtvae_fast._nvrtc.STORED`."""

    @classmethod
    def of(cls, weights: HeadWeights, num_heads: int, gelu: str) -> HeadTable:
        """Allocates; ValueError gives the reason where :func:`why_not` has one."""
        reason, stored = why_not(weights, num_heads), "bf16" if weights.stored == "plain" else weights.stored
        if reason is not None or stored is None:
            raise ValueError(f"prediction_head: {reason}")
        device, sizes = weights.start.device, buffer_sizes(weights)
        buffer = torch.zeros(sum(sizes.values()), dtype=torch.bfloat16, device=device)
        barrier = torch.zeros(2, dtype=torch.int32, device=device)
        parts = buffer.split(list(sizes.values()))
        fields = [len(weights.start), num_heads, len(weights.blocks), int(gelu == "sigmoid")]
        fields += struct.unpack("<q", struct.pack("<ff", LAYER_NORM_EPS, 0.0))
        named = {name: 0 if x is None else x.data_ptr() for name, x in weights.named().items()}
        fields += [named.pop(name) for name in ("start", "positions", "codes")]
        fields += [*(part.data_ptr() for part in parts), barrier.data_ptr()]
        for number, level in enumerate(weights.levels):
            own = [named.pop(f"levels.{number}.{name}") for name in LEVEL_NAMES]
            fields += [*own, len(level.logits)]
        fields += named.values()  # the blocks, in the order of the kernel's own struct
        return cls(torch.tensor(fields, dtype=torch.int64, device=device), buffer, barrier, weights, stored)

    def logits(self, level: int, batch: int) -> Tensor:
        """Those of the last launch's last pass, [rows, K]: a view."""
        sizes = list(buffer_sizes(self.weights).values())
        rows = batch * (1 if level == 0 else BOTTOMS)
        codes = len(self.weights.levels[level].logits)
        return self.buffer[sum(sizes[:-1]) :][: rows * codes].view(rows, codes)


def buffer_sizes(weights: HeadWeights) -> dict[str, int]:
    """Values of each part of the work space: 2.4 MB for preset S."""
    D, codes = len(weights.start), max(len(weights.levels[level].logits) for level in range(LEVELS))
    return {
        "stream": MOST_ROWS * D,
        "qkv": MOST_ROWS * 3 * D,
        "first": len(weights.blocks) * MOST_IMAGES * 2 * D,
        "attended": MOST_ROWS * D,
        "hidden": MOST_ROWS * 4 * D,
        "logits": MOST_ROWS * -(-codes // 8) * 8,
    }

"""Launching the persistent kernel of the prediction head (csrc/cuda/prediction_head.cu)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast import _cuda
from hqtvae_fast._nvrtc import HEAD_FIXED_BYTES, HEAD_SLOT_BYTES, STORED
from hqtvae_fast.ops.kernels.prediction_head import table

SLOT_BYTES = HEAD_SLOT_BYTES
"""Of the ring, by how weights are stored: eight rows of 512 bytes, padded, and two barriers."""
FIXED_BYTES = HEAD_FIXED_BYTES + 127
"""Of shared memory beside the ring, aligned to 128."""


def why_not(h_BD: Tensor, *others: Any) -> str | None:
    """None where the kernel can take these inputs, else the reason; before the last of them comes the head itself."""
    head: Any = others[-2]
    if not 1 <= len(h_BD) <= table.MOST_IMAGES:
        return f"expected 1 to {table.MOST_IMAGES} images; got {len(h_BD)}"
    reason = table.why_not(head.weights, head.num_heads) or _cuda.why_not(h_BD)
    return _cuda.why_not_dependent(h_BD) if reason is None and head.dependent else reason


def ring_slots(shared_memory: int, stored: str) -> int:
    """Slots of the ring where a block may have so many bytes of shared memory: with bf16 42 on an H100, 27 on an A100;
    with weights of one byte 44 and 29."""
    return (shared_memory - FIXED_BYTES) // SLOT_BYTES[stored]


def shared_bytes(slots: int, stored: str) -> int:
    """As csrc/cuda/prediction_head.cu's head_shared_bytes()."""
    return -(-slots * SLOT_BYTES[stored] // 128) * 128 + FIXED_BYTES - 127


@functools.cache
def plan(device: torch.device, stored: str) -> tuple[int, int]:
    """Blocks and slots: a block each multiprocessor, all the shared memory that it may have."""
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, ring_slots(properties.shared_memory_per_block_optin, stored)


def launch(
    table_fields: Tensor,
    h_BD: Tensor,
    codes_B5: Tensor,
    invalid: Tensor,
    seeds_B: Tensor,
    step: Tensor,
    temperature_2: Tensor,
    top_k_2: Tensor,
    top_p_2: Tensor,
    draw_top: bool,
    stored: str,
    dependent: bool,
) -> None:
    blocks, slots = plan(h_BD.device, stored)
    inputs = (h_BD.contiguous(), codes_B5, invalid, seeds_B.contiguous(), step, temperature_2, top_k_2, top_p_2)
    _cuda.operator("prediction_head")(table_fields, *inputs, draw_top, STORED.index(stored), blocks, slots, dependent)

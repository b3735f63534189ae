"""Codes to pixels, in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hqtvae_fast.engine.activation_memory import decoding_memory
from hqtvae_fast.engine.work import decoding_flops
from hqtvae_fast.model import HQVAE
from hqtvae_fast.modes import inference
from hqtvae_fast.threads import SMALL, threads_for

# Of the memory that is free when decoding starts: the rest is left to cuDNN's scratch and to other work. Not yet
# measured on a GPU.
GPU_SHARE = 0.5
# On a CPU a chunk's maps should stay near the caches: two images are enough rows for the convolutions. Of small images,
# as many as are small work together, or what lies between operations costs more than they: 16 of the demo model take
# 0.09 s of CPU in eights and 0.14 s in twos (bf16 and fp32, EPYC), with the same pixels.
CPU_CHUNK = 2


def chunk_size(vae: HQVAE, device: torch.device, budget: int | None = None) -> int:
    """How many images to decode at once: as many as ``budget`` bytes of activations allow, by default half of a GPU's
    free memory; on a CPU, without a budget, what its caches like. ValueError on a budget too small for one."""
    if budget is None and device.type != "cuda":
        return max(CPU_CHUNK, int(SMALL // decoding_flops(vae.config)))
    memory = decoding_memory(vae.config, vae.post_quant_conv.weight.dtype)
    if budget is None:
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, memory.largest_chunk(int(free * GPU_SHARE)))
    chunk = memory.largest_chunk(budget)
    if chunk < 1:
        raise ValueError(f"budget: expected at least {memory.total(1):,} bytes, for one image; got {budget:,}")
    return chunk


@inference()
def decode_codes(
    vae: HQVAE,
    codes: Sequence[Tensor | None],
    *,
    chunk: int | None = None,
    budget: int | None = None,
    as_bytes: bool = False,
) -> Tensor:
    """Images of codes [B, h, w] a level (None leaves one out): float32 [B, 3, R, R] in [0, 1], or ``as_bytes`` uint8
    [B, R, R, 3], which are a quarter of what has to leave a GPU.

    ``chunk``: images decoded at once; by default :func:`chunk_size` with ``budget`` bytes.
    """
    present = next(level for level in codes if level is not None)
    size = chunk_size(vae, present.device, budget) if chunk is None else chunk
    parts = []
    for start in range(0, len(present), size):
        part = [None if level is None else level[start : start + size] for level in codes]
        with threads_for(decoding_flops(vae.config)):
            if as_bytes:
                parts.append(vae.decode_bytes(part))
            else:
                parts.append(vae.decode(part).float().mul_(0.5).add_(0.5).clamp_(0, 1))
    return torch.cat(parts)

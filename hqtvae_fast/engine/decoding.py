"""Codes to pixels, in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hqtvae_fast.config import VAEConfig
from hqtvae_fast.model import HQVAE

# The decoder's largest maps live at the last level: input, convolution result, normalised copy, residual.
LIVE_MAPS = 5
GPU_SHARE = 0.5  # of the memory that is free when decoding starts
# On a CPU a chunk's maps should stay near the caches: two images are enough rows for the convolutions.
CPU_CHUNK = 2


def bytes_per_image(config: VAEConfig, dtype: torch.dtype) -> int:
    """Estimated activation memory of decoding one image."""
    widths = [config.channels * m for m in config.channel_multipliers]
    before_last = widths[1] if len(widths) > 1 else widths[0]
    return LIVE_MAPS * config.resolution**2 * max(widths[0], before_last // 2) * dtype.itemsize


def chunk_size(vae: HQVAE, device: torch.device) -> int:
    """How many images to decode at once."""
    if device.type != "cuda":
        return CPU_CHUNK
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(free * GPU_SHARE) // bytes_per_image(vae.config, vae.post_quant_conv.weight.dtype))


@torch.inference_mode()
def decode_codes(vae: HQVAE, codes: Sequence[Tensor | None], *, chunk: int | None = None) -> Tensor:
    """Images float32 [B, 3, R, R] in [0, 1] of codes [B, h, w] a level (None leaves one out)."""
    present = next(level for level in codes if level is not None)
    size = chunk or chunk_size(vae, present.device)
    parts = []
    for start in range(0, len(present), size):
        part = vae.decode([None if level is None else level[start : start + size] for level in codes])
        parts.append(part.float().mul_(0.5).add_(0.5).clamp_(0, 1))
    return torch.cat(parts)

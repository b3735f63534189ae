"""Roughly how much arithmetic a configuration asks for: what decides how many threads it gets.

Products and convolutions, which are nearly all of it. :mod:`hqtvae_fast.model.cost` counts exactly, by running the
modules on shapes, which takes half a second.
"""

from __future__ import annotations

from functools import cache

from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, VAEConfig

BLOCK = 12  # width^2 values of a transformer block: 3 for queries, keys and values, 1 after attention, 2 x 4 of the MLP
CONV = 9  # width^2 values of a 3x3 convolution


@cache
def drawing_flops(config: TransformerConfig) -> float:
    """FLOPs of drawing one picture's codes."""
    D, local = config.dim, config.num_local
    body = config.num_steps + config.prefix_positions
    head = config.num_steps * local
    logits = sum(width * size for width, size in zip(config.level_widths, config.codebook_sizes, strict=True))
    blocks = BLOCK * D * D * (body * config.body.num_layers + head * config.head.num_layers)
    return 2.0 * (blocks + config.num_steps * D * logits)


@cache
def decoding_flops(config: VAEConfig) -> float:
    """FLOPs of decoding one picture; encoding takes fewer."""
    halved = int(config.init_downsample)
    side, flops = config.resolution >> halved, 0.0
    for level, multiplier in enumerate(config.channel_multipliers):  # from the picture's side on
        # A resampling convolution's larger map has the next level's side, four times the pixels.
        convolutions = 2 * (config.num_res_blocks + 1) + (4 if level > 0 or halved else 0)
        flops += 2.0 * CONV * (config.channels * multiplier * side) ** 2 * convolutions
        side //= 2
    return flops


def picture_flops(config: HQTVAEConfig) -> float:
    """FLOPs of the larger half of one picture."""
    stages = [stage2 for stage2 in (config.transformer, config.refiner) if stage2 is not None]
    return max([decoding_flops(config.vae), *map(drawing_flops, stages)])

"""Drawing codes and turning them into pictures: the sampling loop, its caches, seeds, batches and decoding."""

from hqtvae_fast.engine.decoding import decode_codes
from hqtvae_fast.engine.loop import SamplingParams, draw_codes
from hqtvae_fast.engine.rng import image_seeds

__all__ = ["SamplingParams", "decode_codes", "draw_codes", "image_seeds"]

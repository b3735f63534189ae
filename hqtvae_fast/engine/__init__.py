"""Drawing codes and turning them into pictures: the sampling loop, its caches, seeds, batches and decoding."""

from hqtvae_fast.engine.batches import Batch, Cutter, is_out_of_memory
from hqtvae_fast.engine.decoding import decode_codes
from hqtvae_fast.engine.executor import Executor
from hqtvae_fast.engine.lanes import Job
from hqtvae_fast.engine.loop import SamplingParams, draw_codes
from hqtvae_fast.engine.rng import image_seeds
from hqtvae_fast.engine.stream import Finished, GenerationError, generate

__all__ = [
    "Batch",
    "Cutter",
    "Executor",
    "Finished",
    "GenerationError",
    "Job",
    "SamplingParams",
    "decode_codes",
    "draw_codes",
    "generate",
    "image_seeds",
    "is_out_of_memory",
]

"""Drawing codes and turning them into pictures: the sampling loop, its caches, seeds, batches and decoding."""

from hqtvae_fast.engine.batches import Batch, Cutter, is_out_of_memory
from hqtvae_fast.engine.coding import decode_codes
from hqtvae_fast.engine.executor import Executor, Finished, GenerationError, Job, Rows, generate
from hqtvae_fast.engine.loop import SamplingParams, draw_codes
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.engine.steering import Guidance, Known

__all__ = [
    "Batch",
    "Cutter",
    "EngineOptions",
    "Executor",
    "Finished",
    "GenerationError",
    "Guidance",
    "Job",
    "Known",
    "Rows",
    "SamplingParams",
    "decode_codes",
    "draw_codes",
    "generate",
    "is_out_of_memory",
]

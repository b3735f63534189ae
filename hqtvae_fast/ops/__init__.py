"""The operations that the model stands on, each with its contract, its reference and, where there are any, kernels."""

from hqtvae_fast.ops.nearest_code import nearest_code
from hqtvae_fast.ops.sample_logits import sample_logits

__all__ = ["nearest_code", "sample_logits"]

"""The operations that the model stands on, each with its contract, its reference and, where there are any, kernels."""

from hqtvae_fast.ops.decode_attention import decode_attention
from hqtvae_fast.ops.ema_update import code_statistics, ema_update
from hqtvae_fast.ops.hierarchical_quantize import hierarchical_quantize
from hqtvae_fast.ops.nearest_code import nearest_code
from hqtvae_fast.ops.sample_logits import sample_logits
from hqtvae_fast.ops.soft_label_cross_entropy import soft_label_cross_entropy

__all__ = [
    "code_statistics",
    "decode_attention",
    "ema_update",
    "hierarchical_quantize",
    "nearest_code",
    "sample_logits",
    "soft_label_cross_entropy",
]

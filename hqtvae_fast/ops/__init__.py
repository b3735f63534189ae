"""The operations that the model stands on, each with its contract, its reference and, where there are any, kernels."""

from hqtvae_fast.ops.code_features import code_features
from hqtvae_fast.ops.conv_bytes import conv_bytes
from hqtvae_fast.ops.decode_attention import decode_attention
from hqtvae_fast.ops.ema_update import code_statistics, ema_update
from hqtvae_fast.ops.group_norm_silu import add_group_norm_silu, group_norm_silu
from hqtvae_fast.ops.hierarchical_quantize import hierarchical_quantize
from hqtvae_fast.ops.nearest_code import nearest_code
from hqtvae_fast.ops.sample_logits import sample_logits
from hqtvae_fast.ops.soft_label_cross_entropy import soft_label_cross_entropy
from hqtvae_fast.ops.upsample_conv import upsample_conv

__all__ = [
    "add_group_norm_silu",
    "code_features",
    "code_statistics",
    "conv_bytes",
    "decode_attention",
    "ema_update",
    "group_norm_silu",
    "hierarchical_quantize",
    "nearest_code",
    "sample_logits",
    "soft_label_cross_entropy",
    "upsample_conv",
]

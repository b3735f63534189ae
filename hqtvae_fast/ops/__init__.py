"""The operations that the model stands on, each with its contract, its reference and, where there are any, kernels."""

from hqtvae_fast.ops.kernels.add_layer_norm import add_layer_norm
from hqtvae_fast.ops.kernels.add_maps import add_maps
from hqtvae_fast.ops.kernels.bias_gelu import bias_gelu
from hqtvae_fast.ops.kernels.code_features import code_features
from hqtvae_fast.ops.kernels.conv_bytes import conv_bytes
from hqtvae_fast.ops.kernels.decode_attention import decode_attention
from hqtvae_fast.ops.kernels.draw_from_head import draw_from_head
from hqtvae_fast.ops.kernels.ema_update import code_statistics, ema_update
from hqtvae_fast.ops.kernels.embed_codes import embed_codes
from hqtvae_fast.ops.kernels.group_norm_silu import add_group_norm_silu, group_norm_silu
from hqtvae_fast.ops.kernels.hierarchical_quantize import hierarchical_quantize
from hqtvae_fast.ops.kernels.int8_linear import int8_linear
from hqtvae_fast.ops.kernels.local_attention import local_attention
from hqtvae_fast.ops.kernels.nearest_code import nearest_code
from hqtvae_fast.ops.kernels.prediction_head import PredictionHead
from hqtvae_fast.ops.kernels.prefill_attention import prefill_attention
from hqtvae_fast.ops.kernels.quantized_conv import quantized_conv
from hqtvae_fast.ops.kernels.quantized_linear import quantized_linear
from hqtvae_fast.ops.kernels.round_map import Rounding, round_map
from hqtvae_fast.ops.kernels.sample_logits import sample_logits
from hqtvae_fast.ops.kernels.skinny_linear import skinny_linear
from hqtvae_fast.ops.kernels.soft_label_cross_entropy import soft_label_cross_entropy
from hqtvae_fast.ops.kernels.upsample_conv import upsample_conv
from hqtvae_fast.ops.kernels.winograd_conv import winograd_conv

__all__ = [
    "PredictionHead",
    "Rounding",
    "add_group_norm_silu",
    "add_layer_norm",
    "add_maps",
    "bias_gelu",
    "code_features",
    "code_statistics",
    "conv_bytes",
    "decode_attention",
    "draw_from_head",
    "ema_update",
    "embed_codes",
    "group_norm_silu",
    "hierarchical_quantize",
    "int8_linear",
    "local_attention",
    "nearest_code",
    "prefill_attention",
    "quantized_conv",
    "quantized_linear",
    "round_map",
    "sample_logits",
    "skinny_linear",
    "soft_label_cross_entropy",
    "upsample_conv",
    "winograd_conv",
]

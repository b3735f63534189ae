"""A product with what follows it, in plain torch: the definition, in any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.bias_gelu import reference as pointwise

QUANTIZED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""What a weight may be rounded to, one scale an output: 255 even steps, or four significant bits over 15 octaves."""
MOMENTS_OF = 64
"""Values of a row, one beside the other, that have moments of their own; the last ones may be fewer."""
_LARGEST = {"int8": 127.0, "fp8": 448.0}


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: str,
    prefetch: bool = False,
    norm: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 0.0,
    added: Tensor | None = None,
    moments: Tensor | None = None,
    partials: Tensor | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Rounded after the sum and the norm, after the product (as torch rounds) and after everything else. A norm finds
    its own moments."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if norm is not None and shift is not None:
        x = x if added is None else x + added
        x = F.layer_norm(x.to(wide), norm.shape, norm.to(wide), shift.to(wide), eps).to(x.dtype)
    y = F.linear(x, weight.to(x.dtype)).to(wide)
    if scale is not None:
        y = y * scale.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    if gelu != "none":
        y = pointwise.bias_gelu(y, None, gelu)
    if residual is not None:
        y = y + residual.to(wide)
        if added is not None and norm is None:
            y = y + added.to(wide)
    y = y.to(x.dtype)
    if moments is not None and norm is None:
        moments.copy_(moments_of(y))
    return y


def moments_of(x: Tensor) -> Tensor:
    """Of [..., D]: means, and sums of squared deviations from them, of each :data:`MOMENTS_OF` values of a row; [2,
    ceil(D / 64), rows], fp32 or wider."""
    x_MD = x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
    found = [(own.mean(dim=1), own.var(dim=1, correction=0) * own.shape[1]) for own in x_MD.split(MOMENTS_OF, dim=1)]
    means, squares = zip(*found, strict=True)
    return torch.stack([torch.stack(means), torch.stack(squares)])


def quantize(weight: Tensor, to: str) -> tuple[Tensor, Tensor]:
    """A weight [N, K] as numbers [N, K] of a dtype of :data:`QUANTIZED` and a scale fp32 [N], one an output: weight ~
    numbers * scale, each to the nearest; the largest of an output is the largest of the dtype."""
    if to not in QUANTIZED:
        raise ValueError(f"quantization: expected one of {', '.join(QUANTIZED)}; got {to!r}")
    wide = weight.float()
    scale = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST[to]
    scaled = (wide / scale[:, None]).clamp_(-_LARGEST[to], _LARGEST[to])
    return (scaled.round_() if to == "int8" else scaled).to(QUANTIZED[to]), scale

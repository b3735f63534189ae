"""With fewer multiplications (:mod:`hqtvae_fast.ops.kernels.winograd_conv`)."""

from __future__ import annotations

from torch import Tensor

from hqtvae_fast.ops.kernels.winograd_conv import native, transform_weights, winograd_conv
from hqtvae_fast.ops.kernels.winograd_conv.transforms import PANEL, POINTS, tile_side

FEWEST_CHANNELS = 32
MOST_PRODUCTS = 0.7
"""Of those of the plain convolution: small maps fill their tiles badly."""


def why_not(x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor | None = None) -> str | None:
    """None where the compiled kernel can take ``x`` and has clearly less to multiply, else the reason."""
    C, N, (H, W) = x.shape[1], len(bias), x.shape[2:]
    if C < FEWEST_CHANNELS or C % PANEL or N % (2 * PANEL):
        wanted = f"{PANEL}s of channels, at least {FEWEST_CHANNELS}, and {2 * PANEL}s of outputs"
        return f"expected {wanted}; got {C} and {N}"
    products = POINTS * tile_side(doubled, H)[1] * tile_side(doubled, W)[1]
    if products > MOST_PRODUCTS * (4 if doubled else 9) * H * W:
        return f"expected maps that fill their tiles; got {H}x{W}"
    return native.why_not(x)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    doubled: bool,
    span: Tensor | None = None,
    transformed: Tensor | None = None,
) -> Tensor:
    """``transformed``: the weights as the kernel reads them, if they are there."""
    transformed = transform_weights(weight) if transformed is None else transformed
    return winograd_conv(x, transformed, bias, doubled=doubled, backend="native")

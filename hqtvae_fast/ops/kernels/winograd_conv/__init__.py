"""3x3 convolution, after nearest-neighbour doubling or not, with fewer multiplications: for fp32 on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.winograd_conv import native, reference
from hqtvae_fast.ops.kernels.winograd_conv.transforms import PANEL, POINTS, transform_weights
from hqtvae_fast.ops.operator import dispatched


def winograd_conv(
    x: Tensor, transformed: Tensor, bias: Tensor, *, doubled: bool = False, backend: str | None = None
) -> Tensor:
    """conv3x3(x), padded with zeros by 1: [B, C, H, W] -> [B, N, H, W]; ``doubled``: conv3x3(nearest-2x(x)), [B, N, 2H,
    2W]. In channels-last memory.

    ``transformed`` [36, N / 16, C, 16] (four times as many panels if doubled): :func:`transform_weights` of the 3x3
    weights, or of those that ``fold_upsampling`` gives. ``bias`` [N]; all fp32 or all fp64, on one device; C a multiple
    of 16, N of 32. For inference: no gradient.

    Tiles of 4x4 outputs take 36 products a pair of channels instead of 144; in the folded upsampling, tiles of 5x5 take
    36 instead of 100. The price is accuracy: folded sums are of so few products that plain errors are small, and these
    are up to four times as large; others are about as large as a plain fp32 convolution's. 5e-6 of the largest output
    at most, with a bias or without.

    ``backend``: "native" (CPU, fp32, channels-last, compiled) or "reference" (anywhere; slow). Raises ValueError on
    other shapes or dtypes, and BackendError where the backend asked for cannot run.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x: expected [B, C, H, W], none of them 0; got {list(x.shape)}")
    C, N = x.shape[1], bias.numel()
    if bias.ndim != 1 or C % PANEL or N % (2 * PANEL):
        wanted = f"C a multiple of {PANEL}, bias [N], N a multiple of {2 * PANEL}"
        raise ValueError(f"expected {wanted}; got {list(x.shape)} and {list(bias.shape)}")
    panels = (4 if doubled else 1) * N // PANEL
    if tuple(transformed.shape) != (POINTS, panels, C, PANEL):
        raise ValueError(f"transformed: expected {[POINTS, panels, C, PANEL]}; got {list(transformed.shape)}")
    if x.dtype not in (torch.float32, torch.float64) or not x.dtype == transformed.dtype == bias.dtype:
        raise ValueError(f"expected fp32 or fp64 throughout; got {x.dtype}, {transformed.dtype} and {bias.dtype}")
    choice = choose("winograd_conv", BACKENDS, x, transformed, bias, doubled, backend=backend)
    return torch.ops.hqtvae_fast.winograd_conv(x, transformed, bias, doubled, choice.backend.name)


BACKENDS = (
    Backend("native", native.winograd_conv, native.why_not),
    Backend("reference", reference.winograd_conv),
)


@dispatched("winograd_conv", BACKENDS, mutates_args=())
def _winograd_conv(x: Tensor, transformed: Tensor, bias: Tensor, doubled: bool, backend: str) -> Tensor:
    return reference.empty_output(x, bias, doubled)


__all__ = ["transform_weights", "winograd_conv"]

"""The decoder's last convolution, straight to bytes."""

from __future__ import annotations

from torch import Tensor, ops

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.conv_bytes import reference, torch, triton
from hqtvae_fast.ops.operator import dispatched


def conv_bytes(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """round(255 * clamp(conv3x3(x) / 2 + 1/2, 0, 1)): [B, C, H, W] -> uint8 [B, H, W, N], pictures as files have them.

    ``weight`` [N, C, 3, 3], ``bias`` [N]; all of one floating dtype, on one device; padded with zeros by 1. Ties go to
    even. For inference: no gradient.

    ``backend``: "triton" (CUDA, bf16 or fp16, channels-last, N up to 16: one kernel, and pixels are rounded once),
    "triton/gathered-16x16x64" and other tiles (pixels high x wide x inputs) that read a pixel once, for N up to 3,
    "triton/256x16x32" and others (pixels x outputs x inputs) that read it for each tap, "torch" (anywhere: the
    library's convolution without its bias, rounded to its dtype) or "reference" (anywhere; with it). Raises ValueError
    on other shapes or dtypes, and BackendError where the backend asked for cannot run.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x: expected [B, C, H, W], none of them 0; got {list(x.shape)}")
    if bias.ndim != 1 or tuple(weight.shape) != (len(bias), x.shape[1], 3, 3):
        wanted = f"[{len(bias)}, {x.shape[1]}, 3, 3]"
        raise ValueError(f"weight: expected {wanted} for {len(bias)} biases; got {list(weight.shape)}")
    if not x.is_floating_point() or not x.dtype == weight.dtype == bias.dtype:
        raise ValueError(f"expected one floating dtype; got {x.dtype}, {weight.dtype} and {bias.dtype}")
    choice = choose("conv_bytes", BACKENDS, x, weight, bias, backend=backend)
    return ops.hqtvae_fast.conv_bytes(x, weight, bias, choice.backend.name)


BACKENDS = (
    *with_tiles("triton", triton.conv_bytes, triton.why_not, triton.TILES),
    Backend("reference", reference.conv_bytes),
    Backend("torch", torch.conv_bytes),
)


@dispatched("conv_bytes", BACKENDS, mutates_args=())
def _conv_bytes(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    return reference.empty_bytes(x, weight)


__all__ = ["conv_bytes"]

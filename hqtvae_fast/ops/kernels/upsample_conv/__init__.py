"""Nearest-neighbour doubling and a 3x3 convolution, folded into four 2x2 convolutions of the small map."""

from __future__ import annotations

from torch import Tensor, cat, ops, stack

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.upsample_conv import reference, torch, triton
from hqtvae_fast.ops.operator import dispatched


def upsample_conv(
    x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """conv3x3(nearest-2x(x)): [B, C, H, W] -> [B, N, 2H, 2W] in channels-last memory, in 4/9 of that arithmetic.

    ``folded`` [4*N, C, 2, 2]: the 3x3 weights summed for each parity of the output's row and column, phases row by row
    (:func:`fold_upsampling`); output (2y + p, 2x + q) sees pixels y-1+p, y+p and x-1+q, x+q, zeros beyond the border.
    ``bias`` [N]; ``weight`` [N, C, 3, 3] that ``folded`` was made of, for the variant that reads it. All of one
    floating dtype, on one device. For inference: no gradient.

    ``backend``: "triton" (CUDA, bf16 or fp16, channels-last: one kernel), "triton/128x256x64" and other tiles (pixels x
    outputs x inputs), "torch/folded" (anywhere: one convolution and four strided copies), "torch/unfolded" (with
    ``weight``: the doubled map's) or "reference" (anywhere: two convolutions and four copies). Raises ValueError on
    other shapes or dtypes, and BackendError where the backend asked for cannot run.
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x: expected [B, C, H, W], none of them 0; got {list(x.shape)}")
    N, C = len(bias), x.shape[1]
    if bias.ndim != 1 or tuple(folded.shape) != (4 * N, C, 2, 2):
        raise ValueError(f"folded: expected [{4 * N}, {C}, 2, 2] for {N} biases; got {list(folded.shape)}")
    if not x.is_floating_point() or not x.dtype == folded.dtype == bias.dtype:
        raise ValueError(f"expected one floating dtype; got {x.dtype}, {folded.dtype} and {bias.dtype}")
    if weight is not None and (tuple(weight.shape) != (N, C, 3, 3) or weight.dtype != x.dtype):
        raise ValueError(f"weight: expected {x.dtype} [{N}, {C}, 3, 3]; got {weight.dtype} {list(weight.shape)}")
    inputs = (x, folded, bias, weight)
    choice = choose("upsample_conv", BACKENDS, *inputs, backend=backend)
    return ops.hqtvae_fast.upsample_conv(*inputs, choice.backend.name)


def fold_upsampling(weight: Tensor) -> Tensor:
    """[N, C, 3, 3] for the doubled map -> [4*N, C, 2, 2] for the small one, phases (row, column) row by row.

    Along one axis, output 2y+0 sees small pixels y-1 (tap 0) and y (taps 1, 2); output 2y+1 sees y (0, 1) and y+1 (2).
    """
    even, odd = [[0], [1, 2]], [[0, 1], [2]]
    phases = []
    for rows in (even, odd):
        for columns in (even, odd):
            pixels = [weight[:, :, r][..., c].sum(dim=(-2, -1)) for r in map(_at, rows) for c in map(_at, columns)]
            phases.append(stack(pixels, dim=-1).unflatten(-1, (2, 2)))
    return cat(phases)


def _at(taps: list[int]) -> slice:
    return slice(taps[0], taps[-1] + 1)


BACKENDS = (
    *with_tiles("triton", triton.upsample_conv, triton.why_not, triton.TILES),
    Backend("reference", reference.upsample_conv),
    Backend("torch/folded", torch.folded),
    Backend("torch/unfolded", torch.unfolded, torch.why_not_unfolded),
)


@dispatched("upsample_conv", BACKENDS, mutates_args=())
def _upsample_conv(x: Tensor, folded: Tensor, bias: Tensor, weight: Tensor | None, backend: str) -> Tensor:
    return reference.empty_doubled(x, folded)


__all__ = ["fold_upsampling", "upsample_conv"]

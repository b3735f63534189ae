"""Real cases, inputs, cost and tolerance of the convolution with fewer multiplications."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling
from hqtvae_fast.ops.kernels.winograd_conv import BACKENDS, transform_weights, winograd_conv
from hqtvae_fast.ops.kernels.winograd_conv.reference import winograd_conv as written_out
from hqtvae_fast.ops.kernels.winograd_conv.transforms import POINTS, tile_side
from hqtvae_fast.ops.spec import Case, Cost, Spec

CASES = (  # the decoder's maps, two images at a time
    Case("128x128x128, 2 images", {"B": 2, "C": 128, "H": 128, "W": 128, "N": 128, "doubled": 0}),
    Case("64x64x256, 2 images", {"B": 2, "C": 256, "H": 64, "W": 64, "N": 256, "doubled": 0}),
    Case("16x16x512, 2 images", {"B": 2, "C": 512, "H": 16, "W": 16, "N": 512, "doubled": 0}),
    Case("64x64x256 doubled, 2 images", {"B": 2, "C": 256, "H": 64, "W": 64, "N": 256, "doubled": 1}),
)
SMALL_CASES = (
    Case("one tile", {"B": 1, "C": 32, "H": 4, "W": 4, "N": 32, "doubled": 0}),
    Case("short tiles, two steps of channels", {"B": 2, "C": 48, "H": 13, "W": 7, "N": 128, "doubled": 0}),
    Case("two blocks, short steps", {"B": 3, "C": 16, "H": 17, "W": 11, "N": 96, "doubled": 0}),
    Case("one tile, doubled", {"B": 1, "C": 32, "H": 4, "W": 4, "N": 32, "doubled": 1}),
    Case("two blocks, doubled", {"B": 3, "C": 48, "H": 11, "W": 22, "N": 64, "doubled": 1}),
)
TOLERANCE = 5e-6
Inputs = tuple[Tensor, Tensor, Tensor, bool]


def make_weights(case: Case, device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A map as after an activation, 3x3 weights that keep it about as large, and a bias."""
    B, C, H, W, N = (case[letter] for letter in "BCHWN")
    generator = torch.Generator().manual_seed(seed)
    x = F.silu(torch.randn(B, C, H, W, generator=generator, dtype=torch.float32)).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(N, C, 3, 3, generator=generator, dtype=torch.float32) * (9 * C) ** -0.5
    return x.to(device), weight.to(device), torch.randn(N, generator=generator, dtype=torch.float32).to(device)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    x, weight, bias = make_weights(case, device, seed)
    doubled = bool(case["doubled"])
    return x, transform_weights(fold_upsampling(weight) if doubled else weight), bias, doubled


def run(x: Tensor, transformed: Tensor, bias: Tensor, doubled: bool, *, backend: str | None = None) -> Tensor:
    return winograd_conv(x, transformed, bias, doubled=doubled, backend=backend)


def exact(x: Tensor, transformed: Tensor, bias: Tensor, doubled: bool) -> Tensor:
    """In fp64, from weights rounded as the kernel reads them."""
    x, transformed, bias = (tensor.cpu().double() for tensor in (x, transformed, bias))
    return written_out(x, transformed, bias, doubled)


def cost(case: Case) -> Cost:
    """36 products a tile and pair of channels; the map and the transformed weights read once, the output written."""
    B, C, H, W, N = (case[letter] for letter in "BCHWN")
    doubled = bool(case["doubled"])
    tiles = B * tile_side(doubled, H)[1] * tile_side(doubled, W)[1]
    products = POINTS * C * N * (4 if doubled else 1)
    return Cost(2.0 * tiles * products, 4 * (B * C * H * W + products + B * N * H * W * (4 if doubled else 1)))


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """5e-6 of the largest output. A plain fp32 convolution is off by 1e-6 to 2e-6 of it (0.5e-6 to 1e-6 if folded)."""
    assert got.dtype == inputs[0].dtype, f"expected {inputs[0].dtype}; got {got.dtype}"
    assert got.is_contiguous(memory_format=torch.channels_last), f"expected channels-last; got {got.stride()}"
    assert got.shape == wanted.shape, f"expected {list(wanted.shape)}; got {list(got.shape)}"
    error = float((got.cpu().double() - wanted).abs().max() / wanted.abs().max())
    assert error <= TOLERANCE, f"off by {error:.2e} of the largest output; expected {TOLERANCE:.0e} at most"


def plain(x: Tensor, transformed: Tensor, bias: Tensor, doubled: bool) -> Tensor:
    """torch's convolution of the same shape, folded where doubled; what the weights are is of no matter for time."""
    N, C, taps = len(bias) * (4 if doubled else 1), x.shape[1], 2 if doubled else 3
    weight = transformed.flatten()[: N * C * taps * taps].view(N, taps, taps, C).permute(0, 3, 1, 2)
    if not doubled:
        return F.conv2d(x, weight, bias, padding=1)
    return torch.ops.hqtvae_fast.upsample_conv(x, weight, bias, None, "reference")


SPEC = Spec(
    op="winograd_conv",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=exact,
    check=check,
    cost=cost,
    backends=BACKENDS,
    baselines={"torch.conv2d": plain},
)

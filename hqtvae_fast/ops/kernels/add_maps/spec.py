"""Real cases, inputs, cost, tolerance and compilations of the sum of maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.add_maps import BACKENDS, add_maps, reference
from hqtvae_fast.ops.kernels.add_maps.triton import DEFAULT, TILES, Tile, describe
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant
from hqtvae_fast.ops.triton_launch import TRITON_NAMES

CASES = (  # what the decoder's four upsamplings read, and the first one alone
    Case("128x128x128, 8 images, bf16", {"B": 8, "C": 128, "H": 128}, torch.bfloat16),
    Case("64x64x256, 8 images, bf16", {"B": 8, "C": 256, "H": 64}, torch.bfloat16),
    Case("32x32x512, 8 images, bf16", {"B": 8, "C": 512, "H": 32}, torch.bfloat16),
    Case("16x16x512, 1 image, bf16", {"B": 1, "C": 512, "H": 16}, torch.bfloat16),
    Case("64x64x256, 8 images", {"B": 8, "C": 256, "H": 64}),
)
SMALL_CASES = (
    Case("one pixel", {"B": 1, "C": 8, "H": 1}),
    Case("several blocks, the last one short, bf16", {"B": 2, "C": 64, "H": 9}, torch.bfloat16),
    Case("fp16", {"B": 3, "C": 32, "H": 13}, torch.float16),
    Case("no power of two", {"B": 1, "C": 24, "H": 3}),
)
WIDTHS = (128, 256, 512)
Inputs = tuple[Tensor, Tensor, Tensor]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Channels-last maps about 1, and a vector."""
    B, C, H = (case[letter] for letter in "BCH")
    generator = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(B, C, H, H, generator=generator, dtype=torch.float32) for _ in range(2))
    shift = torch.randn(C, generator=generator, dtype=torch.float32)
    options: dict[str, Any] = {"device": device, "dtype": case.dtype, "memory_format": torch.channels_last}
    return x.to(**options), residual.to(**options), shift.to(device, case.dtype)


def exact(x: Tensor, residual: Tensor, shift: Tensor) -> Tensor:
    """In fp64."""
    return reference.add_maps(x.cpu().double(), residual.cpu().double(), shift.cpu().double())


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """A unit in the last place of the sum, or, where it is larger, of the two maps' alone: of one rounding and of two
    each half."""
    x, residual, _ = inputs
    assert got.dtype == x.dtype, f"expected {x.dtype}; got {got.dtype}"
    assert got.is_contiguous(memory_format=torch.channels_last), f"expected channels-last; got {got.stride()}"
    largest = torch.maximum(wanted.abs(), (x.cpu().double() + residual.cpu().double()).abs())
    over = (got.cpu().double() - wanted).abs() - torch.finfo(x.dtype).eps * largest
    assert bool((over <= 0).all()), f"off by {float(over.max()):.2e} more than the limit"


def cost(case: Case) -> Cost:
    """Two additions a value; two maps read, one written."""
    values = case["B"] * case["C"] * case["H"] ** 2
    return Cost(2 * values, case.dtype.itemsize * (3 * values + case["C"]))


def variants(arch: int) -> list[Variant]:
    """The presets' widths in fp32 and bf16, and the tiles at the narrowest; fp16 is compiled as bf16 is but for a
    conversion."""
    made = [_variant(C, dtype, "", DEFAULT) for dtype in (torch.float32, torch.bfloat16) for C in WIDTHS]
    return made + [_variant(WIDTHS[0], torch.bfloat16, f", {key}", tile) for key, tile in TILES.items()]


def _variant(C: int, dtype: torch.dtype, name: str, tile: Tile) -> Variant:
    from hqtvae_fast.ops.kernels.add_maps import triton_kernels

    signature = dict.fromkeys(("x", "residual", "shift", "total"), f"*{TRITON_NAMES[dtype]}") | {"pixels": "i32"}
    constants = {"C": C, "ROWS": tile.rows(C)}
    what = f"sum of maps, {C} channels, {TRITON_NAMES[dtype]}{name}"
    return Variant(what, triton_kernels.add_kernel, signature, constants, tuple(signature), tile.warps, 3)


SPEC = Spec(
    op="add_maps",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=add_maps,
    reference=exact,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=BACKENDS,
)

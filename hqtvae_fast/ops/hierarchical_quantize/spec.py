"""Real cases, inputs, cost, tolerance (none: it is exact) and compilations of the fused search."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.hierarchical_quantize import hierarchical_quantize, reference
from hqtvae_fast.ops.nearest_code.spec import compilations
from hqtvae_fast.ops.nearest_code.tensor_cores import LARGE, SMALL
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

CASES = (
    Case("S, 64 images", {"B": 64, "d": 256, "H": 16, "K": 8192, "L": 2}),
    Case("S, 1 image", {"B": 1, "d": 256, "H": 16, "K": 8192, "L": 2}),
    Case("S-3level, 16 images", {"B": 16, "d": 256, "H": 32, "K": 8192, "L": 3}),
)
SMALL_CASES = (
    Case("two levels", {"B": 3, "d": 8, "H": 8, "K": 150, "L": 2}),
    Case("no multiples of anything", {"B": 2, "d": 5, "H": 6, "K": 131, "L": 2}),
    Case("three levels", {"B": 2, "d": 4, "H": 8, "K": 20, "L": 3}),
)


def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Tensor, list[Tensor]]:
    """z as sums of codes of all levels and some noise, channels-last, as a trained encoder gives it."""
    generator = torch.Generator().manual_seed(seed)
    B, d, H, K, L = (case[letter] for letter in "BdHKL")
    codebooks = [torch.randn(K, d * 4 ** (L - 1 - level), generator=generator) * 0.5**level for level in range(L)]
    z = 0.3 * torch.randn(B, d, H, H, generator=generator)
    for level, codebook in enumerate(codebooks):
        side = H // 2 ** (L - 1 - level)
        said = reference.lookup(torch.randint(K, (B, side, side), generator=generator), codebook)
        for _ in range(L - 1 - level):
            said = reference.upsample(said, "pixel_shuffle")
        z = z + said
    z = z.to(case.dtype).to(device).contiguous(memory_format=torch.channels_last)
    return z, [codebook.to(case.dtype).to(device) for codebook in codebooks]


def cost(case: Case) -> Cost:
    """Every level's product: L times the finest one's FLOPs, since windows are wider where rows are fewer."""
    B, d, H, K, L = (case[letter] for letter in "BdHKL")
    rows = sum(B * (H // 2**level) ** 2 for level in range(L))
    books = sum(K * d * 4**level for level in range(L))
    return Cost(2 * L * B * H * H * K * d, case.dtype.itemsize * (B * H * H * d * (1 + L) + books) + 8 * rows)


Levels = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def check(got: Levels, wanted: Levels, inputs: tuple[Any, ...]) -> None:
    for level, (found, right) in enumerate(zip(got[0], wanted[0], strict=True)):
        different = int((found.cpu() != right.cpu()).sum())
        assert different == 0, f"level {level}: {different} of {found.numel()} codes differ from level by level"
    for found, right in zip(got[1], wanted[1], strict=True):
        assert torch.equal(found.cpu(), right.cpu())


def define(z: Tensor, codebooks: list[Tensor]) -> Levels:
    """Level by level; each level's search is held to float64 by its own spec."""
    codes, embeddings = reference.quantize(z.cpu(), [codebook.cpu() for codebook in codebooks], "pixel_shuffle")
    return tuple(codes), tuple(embeddings)


def variants(arch: int) -> list[Variant]:
    """Windows of 2 and 4 without a coarser level, pixels under one, windows of 2 under one, pixels under two."""
    made = []
    for order, one in (("channels-last", "stride_channel"), ("NCHW", "stride_x")):
        for window, coarser, tiles in ((2, 0, (SMALL,)), (4, 0, (SMALL,)), (1, 1, (LARGE, SMALL)), (2, 1, (SMALL,))):
            for tile in tiles:
                made += compilations(f"{order} window {window} under {coarser}", tile, "*fp32", window, coarser, (one,))
        made += compilations(f"{order} window 1 under 2", SMALL, "*fp32", 1, 2, (one,))
    return made


SPEC = Spec(
    op="hierarchical_quantize",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=hierarchical_quantize,
    reference=define,
    check=check,
    cost=cost,
    variants=variants,
    baselines={"level by level, torch": lambda z, codebooks: reference.quantize(z, codebooks, "pixel_shuffle")},
)

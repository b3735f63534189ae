"""Real cases, inputs, cost, tolerance (none: it is exact) and compilations of the fused search."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.hierarchical_quantize import BACKENDS, Resampler, hierarchical_quantize, reference
from hqtvae_fast.ops.kernels.nearest_code import triton
from hqtvae_fast.ops.kernels.nearest_code.spec import compilations
from hqtvae_fast.ops.kernels.nearest_code.triton import SMALL, Level
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


def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Tensor, list[Tensor], str]:
    """z as sums of codes of all levels and some noise, channels-last, as a trained encoder gives it."""
    generator = torch.Generator().manual_seed(seed)
    B, d, H, K, L = (case[letter] for letter in "BdHKL")
    codebooks = [
        torch.randn(K, d * 4 ** (L - 1 - level), generator=generator, dtype=torch.float32) * 0.5**level
        for level in range(L)
    ]
    z = 0.3 * torch.randn(B, d, H, H, generator=generator, dtype=torch.float32)
    for level, codebook in enumerate(codebooks):
        side = H // 2 ** (L - 1 - level)
        said = reference.lookup(torch.randint(K, (B, side, side), generator=generator, dtype=torch.int64), codebook)
        for _ in range(L - 1 - level):
            said = reference.upsample(said, "pixel_shuffle")
        z = z + said
    z = z.to(case.dtype).to(device).contiguous(memory_format=torch.channels_last)
    return z, [codebook.to(case.dtype).to(device) for codebook in codebooks], "pixel_shuffle"


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


def run(z: Tensor, codebooks: list[Tensor], resampler: Resampler, *, backend: str | None = None) -> Levels:
    return hierarchical_quantize(z, codebooks, resampler=resampler, backend=backend)


def define(z: Tensor, codebooks: list[Tensor], resampler: str) -> Levels:
    """Level by level; each level's search is held to float64 by its own spec."""
    codes, embeddings = reference.quantize(z.cpu(), [codebook.cpu() for codebook in codebooks], resampler)
    return tuple(codes), tuple(embeddings)


def written_out(z: Tensor, codebooks: list[Tensor], resampler: str) -> list[Tensor]:
    """As one would write it: every map, residual and distance stored; rounding may take another code now and then."""
    codes: list[Tensor] = []
    said = torch.zeros((), dtype=torch.float32, device=z.device)
    for target, codebook in zip(reference.pyramid(z, len(codebooks), resampler), codebooks, strict=True):
        residual = target - said
        rows = residual.permute(0, 2, 3, 1).reshape(-1, codebook.shape[1])
        codes.append(torch.cdist(rows, codebook.to(rows.dtype)).argmin(dim=1).view(len(z), *residual.shape[2:]))
        if len(codes) < len(codebooks):
            said = reference.upsample(said + reference.lookup(codes[-1], codebook), resampler)
    return codes


def describe(z: Tensor, codebooks: list[Tensor], resampler: str) -> dict[str, str]:
    """How the kernels would be launched on the finest level, which has most rows."""
    coarser = tuple((z, codebook) for codebook in codebooks[1:])
    return triton.describe(Level(z, 1, coarser), len(codebooks[-1]))


SHAPES = ((2, 0), (4, 0), (1, 1), (2, 1), (1, 2))


def variants(arch: int) -> list[Variant]:
    """Windows of 2 and 4 without a coarser level, pixels under one, windows of 2 under one, pixels under two; z in
    fp32, as the model has it (narrower ones differ by a conversion)."""
    return [
        variant
        for order, one in (("channels-last", "stride_channel"), ("NCHW", "stride_x"))
        for window, coarser in SHAPES
        for variant in compilations(
            f"{order} {window}x{window} under {coarser}", (SMALL,), "*fp32", window, coarser, (one,)
        )
    ]


SPEC = Spec(
    op="hierarchical_quantize",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=BACKENDS,
    baselines={"level by level, torch.cdist": written_out},
)

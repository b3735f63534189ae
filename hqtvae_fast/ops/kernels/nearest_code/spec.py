"""Real cases, inputs, cost, tolerance (none: it is exact) and compilations of the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.nearest_code import BACKENDS, nearest_code, reference, third_party
from hqtvae_fast.ops.kernels.nearest_code.triton import LARGE, SMALL, TILES, Tile, describe, rows, settle_tile
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

BATCH = 64
CASES = (
    Case(f"S, top, {BATCH} images", {"N": BATCH * 64, "C": 1024, "K": 8192}),
    Case(f"S, bottom, {BATCH} images", {"N": BATCH * 256, "C": 256, "K": 8192}),
    Case("S, top, 1 image", {"N": 64, "C": 1024, "K": 8192}),
    Case("S, bottom, 1 image", {"N": 256, "C": 256, "K": 8192}),
    Case("S, bottom, bf16", {"N": BATCH * 256, "C": 256, "K": 8192}, torch.bfloat16),
)
SMALL_CASES = (
    Case("one tile", {"N": 64, "C": 32, "K": 128}),
    Case("no multiples of anything", {"N": 70, "C": 37, "K": 300}),
    Case("one row, one code, one channel", {"N": 1, "C": 1, "K": 1}),
    Case("no rows", {"N": 0, "C": 5, "K": 3}),
    Case("bf16", {"N": 70, "C": 40, "K": 150}, torch.bfloat16),
    Case("fp16", {"N": 70, "C": 40, "K": 150}, torch.float16),
)


def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Codes spread as a trained codebook's, and rows at the distance from them at which residuals lie."""
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(case["K"], case["C"], generator=generator, dtype=torch.float32)
    z = codebook[torch.randint(case["K"], (case["N"],), generator=generator, dtype=torch.int64)]
    z = z + 0.7 * torch.randn(case["N"], case["C"], generator=generator, dtype=torch.float32)
    return z.to(case.dtype).to(device), codebook.to(case.dtype).to(device)


def cost(case: Case) -> Cost:
    """The product's FLOPs once, though fp32 takes three products of bf16; inputs read once, indices written."""
    N, C, K = case["N"], case["C"], case["K"]
    return Cost(2 * N * K * C, (N + K) * C * case.dtype.itemsize + 8 * N)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    different = int((got.cpu() != wanted.cpu()).sum())
    assert different == 0, f"{different} of {len(got)} rows differ from float64 brute force"


def _product(z: Tensor, codebook: Tensor) -> Tensor:
    return z @ codebook.T


BASELINES = {
    "torch, product + argmin": third_party.scores_argmin,
    "torch.compile, product + argmin": third_party.compiled,
    "torch.cdist + argmin": lambda z, codebook: torch.cdist(z.float(), codebook.float()).argmin(dim=1),
    "faiss": third_party.faiss,
    "cuVS": third_party.cuvs,
    "product alone": _product,
}

# --------------------------------------------------------------------------------------------------------- compilations

POINTERS = ("*fp32", "*i64", "*fp32", "*i64", "*fp32")  # z, and codes and codebooks of two coarser levels
SCORE_TYPES = ("*bf16", "*bf16", "*fp32", "*fp32", "*fp32", "*i32", "*fp32")
SETTLE_TYPES = ("*fp32", "*fp64", "*fp32", "*fp32", "*i32", "*fp32", "*i64", "*i8")
COUNTS = ("i32",) * 8
BOUND = ("fp32",) * 4
NOT_ALIGNED = {"side", "blocks", "relative", "relative_square", "tiny_length", "tiny"}


def compilations(
    prefix: str, tiles: tuple[Tile, ...], z: str, window: int, coarser: int, ones: tuple[str, ...]
) -> list[Variant]:
    """Both kernels for one dtype and shape of windows, the first with each tile; ``ones``: arguments that are 1,
    constants to Triton."""
    from hqtvae_fast.ops.kernels.nearest_code import triton_kernels

    shape = {"SIDE": window, "COARSER": coarser}
    split = z != "*bf16" or coarser > 0
    pointers = (z, *POINTERS[1:])
    made = []
    for tile in tiles:
        constants = {**shape, "SPLIT": split, "BM": tile.rows, "BN": tile.codes, "BK": tile.channels}
        constants["INTERPRET"] = False
        name = f"score {prefix} {tile.rows}x{tile.codes}"
        types = [*pointers, *SCORE_TYPES, *COUNTS]
        made.append(_variant(name, triton_kernels.score_blocks, types, constants, ones, tile, ("mma", "async")))
    settle = settle_tile(window, coarser)
    constants = {**shape, "BR": settle.rows, "BN": tiles[0].codes, "BK": settle.channels, "GROUP": settle.codes}
    types = [*pointers, *SETTLE_TYPES, *COUNTS, "i32", *BOUND]
    return [*made, _variant(f"settle {prefix}", triton_kernels.settle_rows, types, constants, ones, settle, ())]


def _variant(
    name: str,
    kernel: Any,
    types: list[str],
    constants: Mapping[str, Any],
    ones: tuple[str, ...],
    tile: Tile,
    needs: tuple[str, ...],
) -> Variant:
    signature = {key: kind for key, kind in zip(kernel.arg_names, types, strict=False) if key not in ones}
    aligned = tuple(key for key in signature if key not in NOT_ALIGNED)
    constants = {**constants, **dict.fromkeys(ones, 1)}
    return Variant(name, kernel, signature, constants, aligned, tile.warps, tile.stages, needs)


ROWS = ("side", "stride_channel", "stride_y", "stride_x")


def variants(arch: int) -> list[Variant]:
    """Each dtype with the tiles of 128 codes, between which the launcher chooses, and of 64."""
    half = tuple(tile for tile in TILES.values() if tile.codes == 64)
    made = []
    for z in ("fp32", "bf16", "fp16"):
        made += compilations(z, (LARGE, SMALL), f"*{z}", 1, 0, ROWS)
        *scores, settle = compilations(z, half, f"*{z}", 1, 0, ROWS)
        made += [*scores, replace(settle, name=f"{settle.name}, 64 codes")]
    return made


SPEC = Spec(
    op="nearest_code",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=nearest_code,
    reference=lambda z, codebook: reference.nearest_code(z.cpu(), codebook.cpu()),
    check=check,
    cost=cost,
    variants=variants,
    baselines=BASELINES,
    describe=lambda z, codebook, tile=None: describe(rows(z), len(codebook), tile),
    backends=BACKENDS[:-1],  # without float64 brute force: the definition, which takes minutes on a real case
)

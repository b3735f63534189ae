"""Real cases, inputs, cost, tolerance and compilations of the decoder's input from codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.code_features import BACKENDS, code_features, reference
from hqtvae_fast.ops.kernels.code_features.triton import DEFAULT, MOST_LEVELS, TILES, describe
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

S = {"H": 16, "C": 256, "K": 8192, "L": 2}
CASES = (
    Case("S, 1 image, bf16", {"B": 1, **S}, torch.bfloat16),
    Case("S, 50 images, bf16", {"B": 50, **S}, torch.bfloat16),
    Case("S-3level, 16 images, bf16", {"B": 16, "H": 32, "C": 256, "K": 8192, "L": 3}, torch.bfloat16),
)
SMALL_CASES = (
    Case("two levels", {"B": 2, "H": 8, "C": 32, "K": 20, "L": 2}),
    Case("three levels, no multiples of a tile", {"B": 3, "H": 12, "C": 5, "K": 7, "L": 3}),
    Case("one level", {"B": 1, "H": 2, "C": 64, "K": 3, "L": 1}),
    Case("bf16", {"B": 2, "H": 8, "C": 48, "K": 20, "L": 2}, torch.bfloat16),
    Case("fp16", {"B": 2, "H": 8, "C": 48, "K": 20, "L": 2}, torch.float16),
)
Inputs = tuple[list[Tensor], list[Tensor], Tensor]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Codes drawn alike, windows halving from level to level, tables about 1."""
    B, H, C, K, L = (case[letter] for letter in "BHCKL")
    generator = torch.Generator().manual_seed(seed)
    windows = [2 ** (L - 1 - level) for level in range(L)]
    codes = [torch.randint(K, (B, H // f, H // f), generator=generator, dtype=torch.int64).to(device) for f in windows]
    tables = [
        torch.randn(K, f * f, C, generator=generator, dtype=torch.float32).to(device, case.dtype) for f in windows
    ]
    base = torch.randn(windows[0] ** 2, C, generator=generator, dtype=torch.float32).to(device, case.dtype)
    return codes, tables, base


def exact(codes: Sequence[Tensor], tables: Sequence[Tensor], base: Tensor) -> Tensor:
    """In fp64, of the tables' own values."""
    wide = [table.cpu().double() for table in tables]
    return reference.code_features([level.cpu() for level in codes], wide, base.cpu().double())


def cost(case: Case) -> Cost:
    """A row of each level's table read and one written a pixel; codes."""
    B, H, C, L = (case[letter] for letter in "BHCL")
    codes = sum(8 * B * (H // 2**level) ** 2 for level in range(L))
    return Cost(L * B * H * H * C, (L + 1) * B * H * H * C * case.dtype.itemsize + codes)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """Sums of up to four numbers in fp32: within 1e-6 of the largest; in bf16 and fp16 one unit in the last place."""
    assert got.dtype == inputs[2].dtype, f"expected {inputs[2].dtype}; got {got.dtype}"
    assert got.is_contiguous(memory_format=torch.channels_last), f"expected channels-last; got {got.stride()}"
    unit = torch.finfo(got.dtype).eps * wanted.abs() if got.dtype is not torch.float32 else 0.0
    over = (got.cpu().double() - wanted).abs() - 1e-6 * wanted.abs().max() - unit
    assert bool((over <= 0).all()), f"off by {float(over.max()):.2e} more than the limit"


def variants(arch: int) -> list[Variant]:
    """Windows of two and of three levels, and of the coarsest or the finest level alone, in fp32 and bf16; fp16 is left
    out, compiled as bf16 is but for a conversion."""
    from hqtvae_fast.ops.kernels.code_features import triton_kernels

    made = []
    for dtype in ("fp32", "bf16"):
        for windows in ((2, 1, 0), (4, 2, 1), (2, 0, 0), (1, 0, 0)):
            tables = {f"table_{level}": f"*{dtype}" for level in range(MOST_LEVELS)}
            codes = {f"codes_{level}": "*i64" for level in range(MOST_LEVELS)}
            order = [key for level in range(MOST_LEVELS) for key in (f"codes_{level}", f"table_{level}")]
            signature = {key: {**codes, **tables}[key] for key in order}
            signature |= {"base": f"*{dtype}", "out": f"*{dtype}", **dict.fromkeys(("pixels", "H", "W", "C"), "i32")}
            constants = dict(zip(("F0", "F1", "F2"), windows, strict=True)) | {"FB": max(2, windows[0])}
            name = f"code features, windows {' '.join(str(f) for f in windows if f)}, {dtype}"
            for key, tile in {"": DEFAULT, **(TILES if windows == (2, 1, 0) and dtype == "bf16" else {})}.items():
                pixels, channels = tile.shape(256)
                chosen = constants | {"PIXELS": pixels, "CHANNELS": channels}
                launch = (signature, chosen, tuple(signature), tile.warps, 3)
                made.append(Variant(name + (key and f", {key}"), triton_kernels.features_kernel, *launch))
    return made


SPEC = Spec(
    op="code_features",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=code_features,
    reference=exact,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=BACKENDS,
    baselines={"lookups in torch": reference.code_features},
)

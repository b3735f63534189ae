"""Real cases, inputs, cost, tolerance and compilations of GroupNorm with SiLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.group_norm_silu import BACKENDS, add_group_norm_silu, group_norm_silu, reference
from hqtvae_fast.ops.kernels.group_norm_silu.triton import DEFAULT, MOST_RUNS, TILES, Tile, describe
from hqtvae_fast.ops.kernels.round_map import FORMS, Rounding
from hqtvae_fast.ops.kernels.round_map.reference import round_map
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

EPS = 1e-6
FORM = (None, *FORMS)


def _rounded(B: int, C: int, H: int, form: str, *, add: int = 0, shift: int = 0) -> dict[str, int]:
    return {"B": B, "C": C, "H": H, "G": 32, "sum": add, "shift": shift, "form": FORM.index(form)}


# The decoder's maps; "sum": with the residual, as before a block's first convolution; "shift": with a bias.
CASES = (
    Case("last, 256x256x128, 8 images, bf16", {"B": 8, "C": 128, "H": 256, "G": 32, "sum": 0}, torch.bfloat16),
    Case("128x128x128, sum, 8 images, bf16", {"B": 8, "C": 128, "H": 128, "G": 32, "sum": 1}, torch.bfloat16),
    Case("64x64x256, sum, 8 images, bf16", {"B": 8, "C": 256, "H": 64, "G": 32, "sum": 1}, torch.bfloat16),
    Case("16x16x512, sum, 1 image, bf16", {"B": 1, "C": 512, "H": 16, "G": 32, "sum": 1}, torch.bfloat16),
    Case("128x128x128, sum, 8 images", {"B": 8, "C": 128, "H": 128, "G": 32, "sum": 1}),
    Case("256x256x128, shift, 8 images", {"B": 8, "C": 128, "H": 256, "G": 32, "sum": 0, "shift": 1}, torch.bfloat16),
    Case("256x256x128, shift, 8 images, int8", _rounded(8, 128, 256, "int8", shift=1), torch.bfloat16),
    Case("64x64x256, sum, 8 images, int8", _rounded(8, 256, 64, "int8", add=1), torch.bfloat16),
    Case("64x64x256, sum, 8 images, fp8", _rounded(8, 256, 64, "fp8", add=1), torch.bfloat16),
    Case("128x128x128, sum, 2 images, uint8", _rounded(2, 128, 128, "uint8", add=1)),
)
SMALL_CASES = (
    Case("one tile", {"B": 2, "C": 64, "H": 8, "G": 32, "sum": 0}),
    Case("one tile, sum", {"B": 2, "C": 64, "H": 8, "G": 32, "sum": 1}),
    Case("several runs, the last one short", {"B": 2, "C": 256, "H": 13, "G": 32, "sum": 1}),
    Case("several tiles a run", {"B": 1, "C": 512, "H": 33, "G": 32, "sum": 0}),
    Case("one pixel, one channel a group", {"B": 3, "C": 32, "H": 1, "G": 32, "sum": 1}),
    Case("one group", {"B": 2, "C": 8, "H": 5, "G": 1, "sum": 0}),
    Case("bf16", {"B": 2, "C": 256, "H": 9, "G": 32, "sum": 1}, torch.bfloat16),
    Case("fp16", {"B": 2, "C": 256, "H": 9, "G": 32, "sum": 1}, torch.float16),
    Case("shift", {"B": 2, "C": 64, "H": 13, "G": 32, "sum": 0, "shift": 1}),
    Case("sum and shift, bf16", {"B": 2, "C": 128, "H": 9, "G": 32, "sum": 1, "shift": 1}, torch.bfloat16),
    Case("int8, sum", _rounded(2, 64, 9, "int8", add=1)),
    Case("int8, shift", _rounded(2, 64, 13, "int8", shift=1)),
    Case("int8, shift, bf16", _rounded(2, 256, 5, "int8", shift=1), torch.bfloat16),
    Case("fp8, sum", _rounded(1, 128, 7, "fp8", add=1)),
    Case("uint8, sum", _rounded(2, 96, 9, "uint8", add=1)),
    Case("uint8, several runs, bf16", _rounded(1, 256, 13, "uint8"), torch.bfloat16),
)
Inputs = tuple[Tensor, Tensor | None, Tensor, Tensor, int, float, bool, Tensor | None, str | None, float, int]
Outputs = tuple[Tensor, Tensor | None]
SPAN = torch.tensor([-0.28, 2.5], dtype=torch.float32, device="cpu")
"""Of 8 bits: a few numbers lie beyond it."""


def make_inputs(case: Case, device: torch.device, seed: int, offset: float = 0.5) -> Inputs:
    """Channels-last maps with an offset of each group, and weights about 1."""
    B, C, H, G = (case[letter] for letter in "BCHG")
    generator = torch.Generator().manual_seed(seed)
    offsets = offset * torch.randn(B, G, 1, 1, generator=generator, dtype=torch.float32).repeat_interleave(
        C // G, dim=1
    )
    x = torch.randn(B, C, H, H, generator=generator, dtype=torch.float32) + offsets
    weight, bias = (
        1 + 0.2 * torch.randn(C, generator=generator, dtype=torch.float32),
        0.2 * torch.randn(C, generator=generator, dtype=torch.float32),
    )
    x, branch = (
        y.to(device, case.dtype, memory_format=torch.channels_last)
        for y in (x, torch.randn(B, C, H, H, generator=generator, dtype=torch.float32))
    )
    residual = branch if case["sum"] else None
    shift = None
    if case.sizes.get("shift"):
        shift = torch.randn(C, generator=generator, dtype=torch.float32).to(device, case.dtype)
    form, scale, zero = FORM[case.sizes.get("form", 0)], 1.0, 0
    if form is not None:
        scale, zero = (rounding := Rounding.of(SPAN, form)).scale, rounding.zero
    weight, bias = (each.to(device, case.dtype) for each in (weight, bias))
    return x, residual, weight, bias, G, EPS, True, shift, form, scale, zero


def run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
    form: str | None = None,
    scale: float = 1.0,
    zero: int = 0,
    *,
    backend: str | None = None,
) -> Outputs:
    """The result, and the sum where there is a residual."""
    rounding = None if form is None else Rounding(form, scale, zero)
    options: dict[str, Any] = {"silu": silu, "shift": shift, "rounding": rounding, "backend": backend}
    if residual is None:
        return group_norm_silu(x, weight, bias, num_groups, eps, **options), None
    total, y = add_group_norm_silu(x, residual, weight, bias, num_groups, eps, **options)
    return y, total


def exact(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
    *rounding: Any,
) -> Outputs:
    """In fp64; of the sum as it is stored, in x's dtype; in 8 bits what they stand for."""
    total = _total(x.cpu().double(), residual, shift)
    total = total if residual is None else total.to(x.dtype)
    y = reference.forward(total.double(), None, weight.cpu().double(), bias.cpu().double(), num_groups, eps, silu)[0]
    return y, None if residual is None else total


def _total(x: Tensor, residual: Tensor | None, shift: Tensor | None) -> Tensor:
    """x with what is added to it, in x's dtype and on its device."""
    total = x if residual is None else x + residual.to(x)
    return total if shift is None else total + shift.to(x)[:, None, None]


def written_out(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
    *rounding: Any,
) -> Outputs:
    """Additions, torch's normalisation and an activation; not in 8 bits."""
    total = _total(x, residual, shift)
    n = F.group_norm(total, num_groups, weight, bias, eps)
    return F.silu(n) if silu else n, None if residual is None else total


def cost(case: Case) -> Cost:
    """12 FLOP a value, the sum's one more; each map read or written once, though statistics need a second pass."""
    values = case["B"] * case["C"] * case["H"] ** 2
    maps, size = (3 if case["sum"] else 1), case.dtype.itemsize
    return Cost((12 + case["sum"]) * values, values * (maps * size + (1 if case.sizes.get("form") else size)))


def check(got: Outputs, wanted: Outputs, inputs: tuple[Any, ...]) -> None:
    """The sum is off by at most one unit in the last place. The result, held to float64 on that sum, is off by at most
    twice as much as torch's in the same dtype, in NCHW memory, where torch takes differences from means as well, plus
    2e-6 (two units in the last place of a value about 8) in fp32 and one unit in the last place in bf16 and fp16. In
    8 bits that, of which numbers it may make."""
    x, residual, *rest, shift, form, scale, zero = inputs
    dtype = x.dtype if form is None else FORMS[form].dtype
    assert got[0].dtype == dtype, f"expected {dtype}; got {got[0].dtype}"
    assert got[0].stride() == x.stride(), f"expected strides {x.stride()}; got {got[0].stride()}"
    ulp = torch.finfo(x.dtype).eps
    if residual is not None:
        total = got[1]
        assert total is not None
        assert wanted[1] is not None
        _within(total, wanted[1].double(), ulp * wanted[1].double().abs(), "the sum")
        x, shift = total, None
    x, shift, *rest = (y.cpu() if isinstance(y, Tensor) else y for y in (x, shift, *rest))
    right = wanted[0] if residual is None else exact(x, None, *rest)[0]
    as_read: tuple[Any, ...] = (x.contiguous(), None, *rest, shift)
    plain = written_out(*as_read)[0].double()
    unit = torch.full_like(right, 2e-6) if x.dtype is torch.float32 else ulp * right.abs()
    limit = unit + 2 * (plain - right).abs().max()
    if form is None:
        _within(got[0], right, limit, "the result")
    else:
        _between(got[0], right, limit, form, scale, zero)


def _between(got: Tensor, right: Tensor, limit: Tensor, form: str, scale: float, zero: int) -> None:
    """Numbers rise with what they stand for: those of the least and the largest result that it may have been."""
    least, most = (round_map(end, None, None, form, scale, zero).double() for end in (right - limit, right + limit))
    numbers = got.cpu().double()
    assert bool(((least <= numbers) & (numbers <= most)).all()), "the result: numbers of another result"


def _within(got: Tensor, wanted: Tensor, limit: Tensor, what: str) -> None:
    over = (got.cpu().double() - wanted).abs() - limit
    assert bool((over <= 0).all()), f"{what}: off by {float(over.max()):.2e} more than the limit"


# --------------------------------------------------------------------------------------------------------- compilations

TRITON_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
NUMBERS = {"int8": "*i8", "fp8": "*fp8e4nv"}
WIDTHS, ATTENTION_WIDTH = (128, 256, 512), 512
NOT_ALIGNED = {"eps", "inverse", "zero"}


def variants(arch: int) -> list[Variant]:
    """Each kernel and width of the presets, in fp32 and bf16, with weights of the same dtype; without SiLU the width
    that attention has. fp16 is compiled as bf16 is but for a conversion, and is left out."""
    made = [variant for dtype in TRITON_NAMES for C in WIDTHS for variant in _compilations(C, dtype, DEFAULT)]
    forms = NUMBERS if arch >= 90 else {"int8": NUMBERS["int8"]}
    made += [_in_form(C, form, number) for C in WIDTHS for form, number in forms.items()]
    for key, tile in TILES.items():
        forward = _compilations(WIDTHS[0], torch.bfloat16, tile)[:FORWARD]
        made += [replace(variant, name=f"{variant.name}, {key}") for variant in forward]
    return made


FORWARD = 6  # the first of them


def _compilations(C: int, dtype: torch.dtype, tile: Tile) -> list[Variant]:
    from hqtvae_fast.ops.kernels.group_norm_silu import triton_kernels

    x = f"*{TRITON_NAMES[dtype]}"
    maps = {"dy": x, "x": x, "weight": x, "bias": x, "mean": "*fp32", "rstd": "*fp32", "sums": "*fp32"}
    counts = {"HW": "i32", "run": "i32"}
    statistics = {"x": x, "residual": x, "total": x, "shift": x, "runs": "*fp32", **counts}
    apply = {"x": x, "shift": x, "runs": "*fp32", "weight": x, "bias": x, "y": x, "mean": "*fp32", "rstd": "*fp32"}
    apply |= {**counts, "eps": "fp32", "inverse": "fp32", "zero": "i32"}
    made: list[tuple[str, Any, dict[str, str], dict[str, Any]]] = [
        (_statistics_name(add, shift), triton_kernels.statistics_kernel, statistics, {"ADD": add, "SHIFT": shift})
        for add in (False, True)
        for shift in (False, True)
    ]
    shifted = {"SILU": True, "SHIFT": True, "SPLITS": MOST_RUNS, "ROUND": False}
    made.append(("apply with SiLU and shift", triton_kernels.apply_kernel, apply, shifted))
    for silu in (True, False) if ATTENTION_WIDTH == C else (True,):
        name = "with" if silu else "without"
        flag, plain = {"SILU": silu}, {"SHIFT": False, "SPLITS": MOST_RUNS, "ROUND": False}
        made += [
            (f"apply {name} SiLU", triton_kernels.apply_kernel, apply, {**flag, **plain}),
            (f"backward sums {name} SiLU", triton_kernels.sums_kernel, {**maps, **counts}, flag),
            (f"backward {name} SiLU", triton_kernels.gradient_kernel, {**maps, "dx": x, **counts}, flag),
        ]
    shape = {"C": C, "GROUPS": 32, "ROWS": tile.rows(C)}
    return [
        Variant(
            f"group norm, {name}, {C} channels, {TRITON_NAMES[dtype]}",
            kernel,
            signature,
            {**shape, **constants},
            tuple(key for key in signature if key not in NOT_ALIGNED),
            tile.warps,
            3,
        )
        for name, kernel, signature, constants in made
    ]


def _in_form(C: int, form: str, number: str) -> Variant:
    """With SiLU and shift, in 8 bits."""
    shifted = next(each for each in _compilations(C, torch.bfloat16, DEFAULT) if "SiLU and shift" in each.name)
    signature = {**shifted.signature, "y": number}
    name = f"{shifted.name} to {form}"
    return replace(shifted, name=name, signature=signature, constants={**shifted.constants, "ROUND": True})


def _statistics_name(add: bool, shift: bool) -> str:
    return ("sum and " if add else "") + "statistics" + (" with shift" if shift else "")


SPEC = Spec(
    op="group_norm_silu",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=exact,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=BACKENDS,
    baselines={"torch, written out": written_out},
)

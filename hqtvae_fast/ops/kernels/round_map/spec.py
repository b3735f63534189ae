"""Real cases, inputs, cost and compilations of rounding to 8 bits; there is no tolerance."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.round_map import BACKENDS, FORMS, Rounding, round_map
from hqtvae_fast.ops.kernels.round_map.triton import BLOCK, WARPS, describe
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant

FORM = tuple(FORMS)


def _sizes(B: int, C: int, H: int, form: str, *, add: int = 0, shift: int = 0) -> dict[str, int]:
    return {"B": B, "C": C, "H": H, "form": FORM.index(form), "sum": add, "shift": shift}


CASES = (  # before the decoder's upsamplings
    Case("128x128x128, sum and shift, 8 images, int8", _sizes(8, 128, 128, "int8", add=1, shift=1), torch.bfloat16),
    Case("64x64x256, sum and shift, 8 images, int8", _sizes(8, 256, 64, "int8", add=1, shift=1), torch.bfloat16),
    Case("16x16x512, sum and shift, 1 image, int8", _sizes(1, 512, 16, "int8", add=1, shift=1), torch.bfloat16),
    Case("128x128x128, sum and shift, 8 images, fp8", _sizes(8, 128, 128, "fp8", add=1, shift=1), torch.bfloat16),
    Case("128x128x128, sum, 2 images, uint8", _sizes(2, 128, 128, "uint8", add=1)),
    Case("128x128x128, sum, 2 images, uint8, bf16", _sizes(2, 128, 128, "uint8", add=1), torch.bfloat16),
)
SMALL_CASES = (
    Case("int8", _sizes(2, 24, 5, "int8")),
    Case("int8, sum", _sizes(1, 32, 7, "int8", add=1)),
    Case("int8, sum and shift", _sizes(3, 40, 13, "int8", add=1, shift=1)),
    Case("int8, shift", _sizes(1, 16, 3, "int8", shift=1)),
    Case("fp8, sum and shift", _sizes(1, 32, 6, "fp8", add=1, shift=1)),
    Case("uint8", _sizes(2, 24, 5, "uint8")),
    Case("uint8, sum, more than a run", _sizes(2, 64, 13, "uint8", add=1)),
    Case("uint8, sum, bf16", _sizes(1, 40, 5, "uint8", add=1), torch.bfloat16),
    Case("int8, sum and shift, bf16", _sizes(1, 40, 5, "int8", add=1, shift=1), torch.bfloat16),
)
Inputs = tuple[Tensor, "Tensor | None", "Tensor | None", str, float, int]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """A map as after an activation, some of whose numbers lie beyond the span; ties, both zeros, infinities and NaN
    among them."""
    B, C, H = (case[letter] for letter in "BCH")
    generator = torch.Generator().manual_seed(seed)
    x = F.silu(torch.randn(B, C, H, H, generator=generator, dtype=torch.float32))
    rounding = Rounding.of(0.9 * torch.stack(torch.aminmax(x)), FORM[case["form"]])
    ties = [number * rounding.scale for number in (0.5, 1.5, -0.5, 2.5, 1e9, -1e9)]
    special = torch.tensor([*ties, 0.0, -0.0, math.inf, -math.inf, math.nan], dtype=torch.float32, device="cpu")
    x.view(-1)[: len(special)] = special
    x = x.to(device, case.dtype, memory_format=torch.channels_last)
    residual = torch.randn(B, C, H, H, generator=generator, dtype=torch.float32) if case["sum"] else None
    if residual is not None:
        residual = residual.to(device, case.dtype, memory_format=torch.channels_last)
    shift = torch.randn(C, generator=generator, dtype=torch.float32).to(device, case.dtype) if case["shift"] else None
    return x, residual, shift, rounding.form, rounding.scale, rounding.zero


def run(
    x: Tensor,
    residual: Tensor | None,
    shift: Tensor | None,
    form: str,
    scale: float,
    zero: int,
    *,
    backend: str | None = None,
) -> Tensor:
    return round_map(x, Rounding(form, scale, zero), residual=residual, shift=shift, backend=backend)


def exact(x: Tensor, residual: Tensor | None, shift: Tensor | None, form: str, scale: float, zero: int) -> Tensor:
    """The numbers as fp64, one value at a time as they are defined."""
    total = x.cpu()
    for other in (residual, None if shift is None else shift[:, None, None]):
        total = total if other is None else (total.double() + other.cpu().double()).to(x.dtype)
    dtype, low, high = FORMS[form]
    product = (total.float() * torch.tensor(1.0 / scale, dtype=torch.float32)).double()
    product = torch.where(product.isnan(), 0.0, product)
    if dtype.is_floating_point:
        return product.clamp(low, high).float().to(dtype).double()
    return (product.round() + zero).clamp(low, high)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """The same numbers. (The interpreter cuts digits off where a GPU rounds a sum to 16 bits: there they are not.)"""
    x, form = inputs[0], inputs[3]
    assert got.dtype == FORMS[form].dtype, f"expected {FORMS[form].dtype}; got {got.dtype}"
    assert got.stride() == x.stride(), f"expected strides {x.stride()}; got {got.stride()}"
    off = (got.cpu().double() - wanted).abs()
    assert not bool(off.any()), f"{int((off > 0).sum())} of {off.numel()} numbers differ, by up to {float(off.max())}"


def cost(case: Case) -> Cost:
    """A product and a rounding a value, and its sums; maps read once, bytes written once."""
    values = case["B"] * case["C"] * case["H"] ** 2
    maps = 1 + case["sum"]
    return Cost((4 + case["sum"] + case["shift"]) * values, values * (maps * case.dtype.itemsize + 1))


TRITON_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def variants(arch: int) -> list[Variant]:
    """Of one map and of a sum with a shift; fp16 is compiled as bf16 is but for a conversion."""
    forms = {"int8": "*i8", "fp8": "*fp8e4nv"} if arch >= 90 else {"int8": "*i8"}
    return [
        _variant(dtype, form, number, added)
        for dtype in TRITON_NAMES
        for form, number in forms.items()
        for added in (False, True)
    ]


def _variant(dtype: torch.dtype, form: str, number: str, added: bool) -> Variant:
    from hqtvae_fast.ops.kernels.round_map import triton_kernels

    x = f"*{TRITON_NAMES[dtype]}"
    signature = {"x": x, "residual": x, "shift": x, "numbers": number, "size": "i32", "C": "i32"}
    signature |= {"inverse": "fp32", "zero": "i32"}
    name = f"rounding {'a sum ' if added else ''}to {form}, {TRITON_NAMES[dtype]}"
    aligned = tuple(key for key in signature if key not in ("inverse", "zero"))
    shape = {"ADD": added, "SHIFT": added, "BLOCK": BLOCK}
    return Variant(name, triton_kernels.round_kernel, signature, shape, aligned, WARPS, 3)


SPEC = Spec(
    op="round_map",
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
)

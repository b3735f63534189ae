"""Real cases, inputs, cost and tolerance of the decoder's 3x3 convolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hqtvae_fast.backend import choose
from hqtvae_fast.ops.kernels.conv3x3 import BACKENDS, EIGHT_BITS, WINOGRAD, QuantizedConv, int8
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling
from hqtvae_fast.ops.kernels.upsample_conv.spec import exact as doubled_exactly
from hqtvae_fast.ops.kernels.winograd_conv import spec as winograd
from hqtvae_fast.ops.kernels.winograd_conv import transform_weights
from hqtvae_fast.ops.spec import Case, Cost, Spec

Inputs = tuple[Tensor, Tensor, Tensor, bool, "Tensor | None"]
INT8_TOLERANCE = 2**-20
"""Of the largest output, beside a rounding to the dtype, from the same whole numbers: for scales and bias in fp32."""
FP8_TOLERANCE = 2**-10
_made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # as a model keeps it: made once for a weight


def _calibrated(case: Case, dtype: torch.dtype = torch.float32) -> Case:
    kind = "" if dtype is torch.float32 else ", bf16"
    return Case(f"{case.name}, calibrated{kind}", {**case.sizes, "calibrated": 1}, dtype)


CASES = (*winograd.CASES, *map(_calibrated, winograd.CASES))
SMALL_CASES = (
    *winograd.SMALL_CASES,
    *map(_calibrated, winograd.SMALL_CASES),
    *(_calibrated(case, torch.bfloat16) for case in winograd.SMALL_CASES if case["doubled"]),
)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """A few of a calibrated layer's numbers lie beyond its span."""
    x, weight, bias = winograd.make_weights(replace(case, dtype=torch.float32), device, seed)
    span = 0.9 * torch.stack(torch.aminmax(x)).cpu() if case.sizes.get("calibrated") else None
    doubled = bool(case["doubled"])
    x, weight, bias = (each.to(case.dtype) for each in (x, fold_upsampling(weight) if doubled else weight, bias))
    return x, weight, bias, doubled, span


def run(
    x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor | None, *, backend: str | None = None
) -> Tensor:
    """With what is made of the weights when they are first seen."""
    chosen = choose("conv3x3", BACKENDS, x, weight, bias, doubled, span, backend=backend).backend
    known: dict[str, Any] = _made.setdefault(weight, {})
    with torch.inference_mode():
        if chosen.name == WINOGRAD and chosen.name not in known:
            known[chosen.name] = transform_weights(weight)
        kind = EIGHT_BITS.get(chosen.name)
        key = chosen.name if kind is None else f"{chosen.base} {kind.form}"
        if kind is not None and key not in known:
            assert span is not None
            known[key] = kind.make(weight, bias, doubled, span)
        return chosen.run(x, weight, bias, doubled, span, known.get(key))


def exact(x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor | None) -> Tensor:
    """In fp64."""
    if doubled:
        return doubled_exactly(x, weight, bias)
    x, weight, bias = (tensor.cpu().double() for tensor in (x, weight, bias))
    return F.conv2d(x, weight, bias, padding=1)


def cost(case: Case) -> Cost:
    """Of the plain convolution, folded where doubled."""
    B, C, H, W, N = (case[letter] for letter in "BCHWN")
    outputs, taps = B * N * H * W * (4 if case["doubled"] else 1), 4 if case["doubled"] else 9
    values = B * C * H * W + N * C * taps * (4 if case["doubled"] else 1) + outputs
    return Cost(2.0 * outputs * taps * C, case.dtype.itemsize * values)


def in_fp8(x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Tensor) -> Tensor:
    """As fp8's numbers define it: sums, scales and bias in fp32, which the result is left in."""
    made = QuantizedConv.of(weight, bias, doubled, span, form="fp8").by("reference")
    return replace(made, dtype=torch.float32)(x)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """5e-6 of the largest output, as of the convolution with fewer multiplications, and a rounding to the dtype; of a
    calibrated layer the sums of its 8-bit numbers will do too (:mod:`.int8`, :func:`in_fp8`; of fp8 on a GPU to 2^-10,
    as its convolution)."""
    x, weight, bias, doubled, span = inputs
    if span is not None and got.dtype == x.dtype and got.shape == wanted.shape:
        if _near(got, int8.conv3x3(x.double(), weight, bias, doubled, span), INT8_TOLERANCE):
            return
        share = FP8_TOLERANCE if got.is_cuda else INT8_TOLERANCE
        if _near(got, in_fp8(x, weight, bias, doubled, span).double(), share):
            return
    if x.dtype is torch.float32:
        winograd.check(got, wanted, inputs)
        return
    over = (got.cpu().double() - wanted).abs() - 2 * torch.finfo(x.dtype).eps * wanted.abs().max()
    assert bool((over <= 0).all()), f"off by {float(over.max()):.2e} more than the limit"


def _near(got: Tensor, whole: Tensor, share: float) -> bool:
    limit = torch.finfo(got.dtype).eps * whole.abs() + share * whole.abs().max()
    return bool(((got.double() - whole).abs() <= limit).all())


SPEC = Spec(
    op="conv3x3",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=exact,
    check=check,
    cost=cost,
    backends=BACKENDS,
)

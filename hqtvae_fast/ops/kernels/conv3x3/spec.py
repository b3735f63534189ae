"""Real cases, inputs, cost and tolerance of the decoder's convolutions on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hqtvae_fast.backend import choose
from hqtvae_fast.ops.kernels.conv3x3 import BACKENDS
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling
from hqtvae_fast.ops.kernels.upsample_conv.spec import exact as doubled_exactly
from hqtvae_fast.ops.kernels.winograd_conv import spec as winograd
from hqtvae_fast.ops.kernels.winograd_conv import transform_weights
from hqtvae_fast.ops.spec import Case, Cost, Spec

Inputs = tuple[Tensor, Tensor, Tensor, bool]
_transformed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # as a model keeps them: made once for a weight


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    x, weight, bias = winograd.make_weights(case, device, seed)
    return x, fold_upsampling(weight) if case["doubled"] else weight, bias, bool(case["doubled"])


def run(x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, *, backend: str | None = None) -> Tensor:
    """With weights that are transformed when they are first seen."""
    chosen = choose("conv3x3", BACKENDS, x, weight, bias, doubled, backend=backend).backend
    with torch.inference_mode():
        if chosen.name == "native" and weight not in _transformed:
            _transformed[weight] = transform_weights(weight)
        return chosen.run(x, weight, bias, doubled, _transformed.get(weight))


def exact(x: Tensor, weight: Tensor, bias: Tensor, doubled: bool) -> Tensor:
    """In fp64."""
    if doubled:
        return doubled_exactly(x, weight, bias)
    x, weight, bias = (tensor.cpu().double() for tensor in (x, weight, bias))
    return F.conv2d(x, weight, bias, padding=1)


def cost(case: Case) -> Cost:
    """Of the plain convolution, folded where doubled."""
    B, C, H, W, N = (case[letter] for letter in "BCHWN")
    outputs, taps = B * N * H * W * (4 if case["doubled"] else 1), 4 if case["doubled"] else 9
    return Cost(2.0 * outputs * taps * C, 4 * (B * C * H * W + N * C * taps * (4 if case["doubled"] else 1) + outputs))


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """5e-6 of the largest output, as of the convolution with fewer multiplications."""
    winograd.check(got, wanted, inputs)


SPEC = Spec(
    op="conv3x3",
    cases=winograd.CASES,
    small=winograd.SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=exact,
    check=check,
    cost=cost,
    backends=BACKENDS,
)

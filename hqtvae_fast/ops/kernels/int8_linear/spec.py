"""Real cases, inputs, cost and tolerance of products of 8-bit numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.int8_linear import BACKENDS, Panels, int8_linear, pack, reference
from hqtvae_fast.ops.kernels.skinny_linear.reference import quantize
from hqtvae_fast.ops.kernels.skinny_linear.spec import LAYERS
from hqtvae_fast.ops.spec import Case, Cost, Spec

GELU_ERROR = 2e-6
"""Of the value that GELU is taken of, beside a rounding to the dtype."""


def _case(name: str, M: int, N: int, K: int, dtype: torch.dtype, bias: int = 0, gelu: int = 0) -> Case:
    return Case(name, {"M": M, "N": N, "K": K, "bias": bias, "gelu": gelu}, dtype)


CASES = tuple(
    _case(f"S, {name}, {M} rows", M, *layer, torch.float32, 1, name == "up")
    for name, layer in LAYERS.items()
    for M in (1, 8, 32)
)
SMALL_CASES = (
    _case("one panel", 3, 16, 64, torch.float32),
    _case("no multiples, bias and GELU", 5, 37, 301, torch.float32, 1, 1),
    _case("three groups of rows, bf16", 19, 48, 100, torch.bfloat16, 1),
    _case("GELU, bf16", 8, 33, 66, torch.bfloat16, 0, 1),
    _case("more rows and inputs than are kept at a time", 67, 17, 530, torch.float32, 1),
)
Inputs = tuple[Tensor, Tensor, Tensor, "Tensor | None", "Panels | None", bool]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Outputs of about 1, as a trained layer's on normalised rows."""
    M, N, K = case["M"], case["N"], case["K"]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(M, K, generator=generator, dtype=torch.float32).to(case.dtype)
    weight, scale = quantize(torch.randn(N, K, generator=generator, dtype=torch.float32) * K**-0.5, "int8")
    bias = torch.randn(N, generator=generator, dtype=torch.float32).to(case.dtype) if case["bias"] else None
    weight, scale = weight.to(device), scale.to(device)
    panels = pack(weight, scale)
    return x.to(device), weight, scale, None if bias is None else bias.to(device), panels, bool(case["gelu"])


def run(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    panels: Panels | None,
    gelu: bool,
    *,
    backend: str | None = None,
) -> Tensor:
    return int8_linear(x, weight, scale, bias, gelu=gelu, panels=panels, backend=backend)


def define(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, panels: Panels | None, gelu: bool) -> Tensor:
    """The reference of rows as they are rounded; GELU in float64."""
    x, weight, scale = x.cpu(), weight.cpu(), scale.cpu()
    y = reference.int8_linear(x.float(), weight, scale, None if bias is None else bias.cpu().float())
    return F.gelu(y.double()) if gelu else y.to(x.dtype)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """The same bits; with GELU, 2e-6 of what it is taken of and a rounding to the dtype."""
    x, gelu = inputs[0], inputs[-1]
    assert got.dtype == x.dtype, f"expected {x.dtype}; got {got.dtype}"
    assert got.shape == wanted.shape, f"expected {list(wanted.shape)}; got {list(got.shape)}"
    got = got.cpu()
    if not gelu:
        differ = int((got != wanted).sum())
        assert differ == 0, f"expected the reference's bits; {differ} of {got.numel()} differ"
        return
    before: list[Any] = [*inputs[:-1], False]
    y = define(*before).double().abs()
    allowed = GELU_ERROR * y + torch.finfo(x.dtype).eps * wanted.abs()
    over = float(((got.double() - wanted).abs() - allowed).max())
    assert over <= 0, f"GELU: off by {over:.2e} more than the limit"


def torch_modules(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, panels: Panels | None, gelu: bool
) -> Tensor:
    """Without rounding rows, the weight widened each time."""
    y = F.linear(x, (weight.to(torch.float32) * scale[:, None]).to(x.dtype), bias)
    return F.gelu(y) if gelu else y


def cost(case: Case) -> Cost:
    """The weight once; rows in and out."""
    M, N, K = case["M"], case["N"], case["K"]
    return Cost(2 * M * N * K, N * (K + 4) + case.dtype.itemsize * M * (K + N))


SPEC = Spec(
    op="int8_linear",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    backends=BACKENDS,
    baselines={"torch": torch_modules},
)

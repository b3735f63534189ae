"""Real cases, inputs, cost and tolerance of products on a CPU with a weight that was laid out once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hqtvae_fast.ops.kernels.int8_linear.reference import int8_linear
from hqtvae_fast.ops.kernels.packed_linear import BACKENDS, PackedWeight, packer
from hqtvae_fast.ops.kernels.skinny_linear.reference import quantize
from hqtvae_fast.ops.spec import Case, Cost, Spec, check_errors

ROWS = 8  # of a step: what is decided about a weight is decided for few rows


def _case(name: str, N: int, K: int, dtype: torch.dtype, int8: bool = False) -> Case:
    return Case(name, {"N": N, "K": K, "int8": int(int8)}, dtype)


LAYERS = (("qkv", 4608, 1536), ("out", 1536, 1536), ("up", 6144, 1536), ("down", 1536, 6144))
CASES = tuple(
    _case(f"S, {name}{', int8' if int8 else ''}", N, K, torch.bfloat16, int8)
    for name, N, K in LAYERS
    for int8 in (False, True)
)
SMALL_CASES = (
    _case("bf16", 64, 48, torch.bfloat16),
    _case("no panels, bf16", 33, 47, torch.bfloat16),
    _case("fp32", 512, 256, torch.float32),
    _case("int8", 33, 70, torch.float32, True),
    _case("int8, bf16", 64, 48, torch.bfloat16, True),
)
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # as a model keeps it: made once for a weight


def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """A weight; of one in int8 its numbers and scale too, which it is the product of."""
    N, K = case["N"], case["K"]
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) * K**-0.5
    if not case["int8"]:
        return (weight.to(case.dtype).to(device),)
    stored, scale = quantize(weight, "int8")
    return tuple(x.to(device) for x in ((stored.float() * scale[:, None]).to(case.dtype), stored, scale))


def rows_for(weight: Tensor) -> Tensor:
    """[8, K] in the weight's dtype: what it is multiplied with."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, weight.shape[1], generator=generator, dtype=torch.float32)
    return x.to(weight.dtype).to(weight.device)


def run(weight: Tensor, *quantized: Tensor, backend: str | None = None) -> Tensor:
    """The product of :func:`rows_for` with the weight as the backend lays it out, which is done once."""
    chosen = packer(weight, *quantized, backend=backend)
    known: dict[str, tuple[Tensor, PackedWeight | None]] = _packed.setdefault(weight, {})
    if chosen.name not in known:
        known[chosen.name] = rows_for(weight), chosen.run(weight, *quantized)
    x, packed = known[chosen.name]
    return F.linear(x, weight) if packed is None else packed.linear(x, None)


def define(weight: Tensor, *quantized: Tensor) -> Tensor:
    return F.linear(rows_for(weight).double(), weight.double())


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """Errors against float64 at most twice those of torch's product, plus 2e-6 of the largest value; of a weight in
    int8 the very bits of the product of rounded inputs will do too."""
    weight = inputs[0]
    if len(inputs) > 1:
        stored, scale = (x.cpu() for x in inputs[1:])
        if torch.equal(got.cpu(), int8_linear(rows_for(weight).cpu(), stored, scale, None)):
            return
    check_errors("product", got, wanted, F.linear(rows_for(weight), weight), absolute=2e-6)


def cost(case: Case) -> Cost:
    """The weight once; rows in and out."""
    N, K = case["N"], case["K"]
    weight = N * (K + 4) if case["int8"] else case.dtype.itemsize * N * K
    return Cost(2 * ROWS * N * K, weight + case.dtype.itemsize * ROWS * (N + K))


SPEC = Spec(
    op="packed_linear",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    backends=BACKENDS,
)

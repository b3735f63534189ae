"""Real cases, inputs, cost and tolerance of products on a CPU with a weight that was laid out once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hqtvae_fast.ops.kernels.packed_linear import BACKENDS, PackedWeight, packer
from hqtvae_fast.ops.spec import Case, Cost, Spec, check_errors

ROWS = 8  # of a step: what is decided about a weight is decided for few rows
CASES = tuple(
    Case(f"S, {name}", {"N": N, "K": K}, torch.bfloat16)
    for name, N, K in (("qkv", 4608, 1536), ("out", 1536, 1536), ("up", 6144, 1536), ("down", 1536, 6144))
)
SMALL_CASES = (
    Case("bf16", {"N": 64, "K": 48}, torch.bfloat16),
    Case("no panels, bf16", {"N": 33, "K": 47}, torch.bfloat16),
    Case("fp32", {"N": 512, "K": 256}),
)
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # as a model keeps it: made once for a weight


def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Tensor]:
    N, K = case["N"], case["K"]
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) * K**-0.5
    return (weight.to(case.dtype).to(device),)


def rows_for(weight: Tensor) -> Tensor:
    """[8, K] in the weight's dtype: what it is multiplied with."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, weight.shape[1], generator=generator, dtype=torch.float32)
    return x.to(weight.dtype).to(weight.device)


def run(weight: Tensor, *, backend: str | None = None) -> Tensor:
    """The product of :func:`rows_for` with the weight as the backend lays it out, which is done once."""
    chosen = packer(weight, backend=backend)
    known: dict[str, tuple[Tensor, PackedWeight | None]] = _packed.setdefault(weight, {})
    if chosen.name not in known:
        known[chosen.name] = rows_for(weight), chosen.run(weight)
    x, packed = known[chosen.name]
    return F.linear(x, weight) if packed is None else packed.linear(x, None)


def define(weight: Tensor) -> Tensor:
    return F.linear(rows_for(weight).double(), weight.double())


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """Errors against float64 at most twice those of torch's product, plus 2e-6 of the largest value."""
    check_errors("product", got, wanted, F.linear(rows_for(inputs[0]), inputs[0]), absolute=2e-6)


def cost(case: Case) -> Cost:
    """The weight once; rows in and out."""
    N, K = case["N"], case["K"]
    return Cost(2 * ROWS * N * K, case.dtype.itemsize * (N * K + ROWS * (N + K)))


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

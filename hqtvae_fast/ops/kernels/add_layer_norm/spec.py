"""Real cases, inputs, cost, tolerance and compilations of residual, bias and LayerNorm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.add_layer_norm import BACKENDS, add_layer_norm, reference
from hqtvae_fast.ops.kernels.add_layer_norm.triton import TILES
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant, check_errors
from hqtvae_fast.ops.triton_launch import TRITON_NAMES, power_of_2, row_warps

EPS = 1e-5
CASES = tuple(
    Case(f"S, {what}, batch {B}", {"M": B * n, "D": 1536, "added": 1}, torch.bfloat16)
    for B in (1, 8, 50, 256)
    for what, n in (("one token", 1), ("pass 2", 4))
)
SMALL_CASES = (
    Case("fp32", {"M": 3, "D": 64, "added": 1}),
    Case("no power of 2, bf16", {"M": 2, "D": 90, "added": 1}, torch.bfloat16),
    Case("nothing added", {"M": 3, "D": 37, "added": 0}, torch.float16),
    Case("one value", {"M": 2, "D": 1, "added": 1}),
)

Inputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Rows with a mean as large as their spread, which a trained model's residual stream has."""
    M, D = case["M"], case["D"]
    generator = torch.Generator().manual_seed(seed)
    x, added = (1 + torch.randn(M, D, generator=generator, dtype=torch.float32) for _ in range(2))
    bias, weight, shift = (0.5 * torch.randn(D, generator=generator, dtype=torch.float32) for _ in range(3))
    tensors = [tensor.to(case.dtype).to(device) for tensor in (x, added, bias, 1 + weight, shift)]
    x, added, bias, weight, shift = tensors
    return (x, added, bias, weight, shift) if case["added"] else (x, None, None, weight, shift)


def define(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """In float64, the sum not rounded."""
    return _plain(*(None if part is None else part.cpu().double() for part in inputs))


def _plain(*inputs: Any) -> tuple[Tensor, Tensor]:
    x, added, bias, weight, shift = inputs
    return reference.add_layer_norm(x, added, bias, weight, shift, EPS)


def torch_modules(
    x: Tensor, added: Tensor | None, bias: Tensor | None, weight: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """As one would write it."""
    if added is not None:
        x = x + (added if bias is None else added + bias)
    return x, torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, shift, EPS)


def check(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], inputs: tuple[Any, ...]) -> None:
    """Errors against float64 at most twice the reference's in the same dtype, plus 1e-6 of the largest value: of the
    sum, and of the LayerNorm of the sum as it was rounded and returned."""
    copies: list[Any] = [None if part is None else part.cpu() for part in inputs]
    x, added, bias, weight, shift = copies
    check_errors("sum", got[0], wanted[0], _plain(x, added, bias, weight, shift)[0], absolute=1e-6)
    total = got[0].cpu()
    exact = _plain(total.double(), None, None, weight.double(), shift.double())[1]
    check_errors("LayerNorm", got[1], exact, _plain(total, None, None, weight, shift)[1], absolute=1e-6)


def cost(case: Case) -> Cost:
    """x and what is added are read, the sum and its LayerNorm written; about 12 operations a value."""
    M, D = case["M"], case["D"]
    return Cost(12 * M * D, case.dtype.itemsize * (M * D * (3 + case["added"]) + 3 * D))


def variants(arch: int) -> list[Variant]:
    """S, M and L (D = 1536) and FFHQ (1024), with and without something added."""
    from hqtvae_fast.ops.kernels.add_layer_norm import triton_kernels

    made = []
    for dtype in (torch.float32, torch.bfloat16):
        for D, added, bias in ((1536, True, True), (1536, False, True), (1536, False, False), (1024, True, True)):
            present = {"x": True, "added": added, "bias": bias, "weight": True, "shift": True}
            names = [name for name, there in present.items() if there] + ["total", "normal"]
            signature = dict.fromkeys(names, f"*{TRITON_NAMES[dtype]}")
            signature |= {"eps": "fp32"} | dict.fromkeys(("D", "stride_x", "stride_added"), "i32")
            constants: dict[str, Any] = {name: None for name, there in present.items() if not there}
            constants |= {"WIDTH": power_of_2(D), "TRIGGER": arch >= 90}
            aligned = tuple(name for name in signature if name != "eps")
            what = " ".join(name for name in ("added", "bias") if present[name]) or "nothing"
            name = f"layer norm of {D} {TRITON_NAMES[dtype]} with {what}"
            launch = (triton_kernels.add_layer_norm_kernel, signature, constants, aligned)
            made.append(Variant(name, *launch, row_warps(D), 3))
            if dtype is torch.bfloat16 and D == 1536 and bias:
                made += [Variant(f"{name}, {key}", *launch, tile.warps, 3) for key, tile in TILES.items()]
    return made


SPEC = Spec(
    op="add_layer_norm",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=add_layer_norm,
    reference=define,
    check=check,
    cost=cost,
    variants=variants,
    backends=BACKENDS,
    baselines={"torch": torch_modules},
)

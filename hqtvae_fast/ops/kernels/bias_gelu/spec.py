"""Real cases, inputs, cost, tolerance and compilations of bias and GELU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.bias_gelu import BACKENDS, FORMS, bias_gelu, reference, triton
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant, check_errors
from hqtvae_fast.ops.triton_launch import TRITON_NAMES

CASES = tuple(
    Case(f"S, {what}, batch {B}", {"M": B * n, "D": 6144, "form": 0, "bias": 1}, torch.bfloat16)
    for B in (1, 8, 50, 256)
    for what, n in (("one token", 1), ("pass 2", 4))
)
SMALL_CASES = (
    Case("exact, two blocks", {"M": 2, "D": 1100, "form": 0, "bias": 1}),
    Case("sigmoid, bf16", {"M": 3, "D": 50, "form": 1, "bias": 1}, torch.bfloat16),
    Case("exact, fp16", {"M": 3, "D": 64, "form": 0, "bias": 1}, torch.float16),
    Case("no bias", {"M": 1, "D": 40, "form": 1, "bias": 0}),
)


def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Tensor, Tensor | None, str]:
    """Values to both ends of what GELU bends, and a few far out."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(case["M"], case["D"], generator=generator, dtype=torch.float32)
    x[0, :4] = torch.tensor([-40.0, 40.0, 0.0, -6.0], dtype=torch.float32)
    bias = 0.5 * torch.randn(case["D"], generator=generator, dtype=torch.float32)
    x, bias = x.to(case.dtype).to(device), bias.to(case.dtype).to(device)
    return x, bias if case["bias"] else None, FORMS[case["form"]]


def define(x: Tensor, bias: Tensor | None, form: str) -> Tensor:
    return reference.bias_gelu(x.cpu().double(), None if bias is None else bias.cpu().double(), form)


def torch_modules(x: Tensor, bias: Tensor | None, form: str) -> Tensor:
    """As one would write it."""
    y = x if bias is None else x + bias
    return F.gelu(y) if form == "exact" else y * torch.sigmoid(1.702 * y)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """Errors against float64 at most twice the reference's in the same dtype, plus 1e-7 of the largest value."""
    x, bias, form = inputs
    plain = reference.bias_gelu(x.cpu(), None if bias is None else bias.cpu(), form)
    check_errors("GELU", got, wanted, plain, absolute=1e-7)


def cost(case: Case) -> Cost:
    """Each value once in and once out; about 30 operations for the error function."""
    M, D = case["M"], case["D"]
    return Cost(30 * M * D, case.dtype.itemsize * (2 * M * D + D))


def variants(arch: int) -> list[Variant]:
    """Both forms, with and without a bias."""
    from hqtvae_fast.ops.kernels.bias_gelu import triton_kernels

    made = []
    for dtype in (torch.float32, torch.bfloat16):
        for form in FORMS:
            for biased in (True, False):
                names = ("x", "bias", "out") if biased else ("x", "out")
                signature = dict.fromkeys(names, f"*{TRITON_NAMES[dtype]}") | dict.fromkeys(("D", "stride"), "i32")
                constants: dict[str, Any] = {} if biased else {"bias": None}
                constants |= {"EXACT": form == "exact"}
                name = f"{form} GELU {TRITON_NAMES[dtype]}{' with bias' if biased else ''}"
                tiles = triton.TILES if dtype is torch.bfloat16 and form == "exact" and biased else {}
                for key, tile in {"": triton.DEFAULT, **tiles}.items():
                    chosen = constants | {"BLOCK": tile.values}
                    launch = (signature, chosen, tuple(signature), tile.warps, 3)
                    made.append(Variant(name + (key and f", {key}"), triton_kernels.bias_gelu_kernel, *launch))
    return made


SPEC = Spec(
    op="bias_gelu",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=bias_gelu,
    reference=define,
    check=check,
    cost=cost,
    variants=variants,
    backends=BACKENDS,
    baselines={"torch": torch_modules},
)

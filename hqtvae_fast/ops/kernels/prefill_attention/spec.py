"""Real cases, inputs, cost and tolerance of causal attention over a prefix. There is no kernel of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.local_attention.spec import allowance
from hqtvae_fast.ops.kernels.prefill_attention import BACKENDS, prefill_attention
from hqtvae_fast.ops.spec import Case, Cost, Spec, check_errors

CASES = tuple(
    Case(f"S-text, batch {B}", {"B": B, "T": 64, "H": 24, "E": 64, "C": 127, "bias": 1}, torch.bfloat16)
    for B in (1, 8, 50, 256)
)
SMALL_CASES = (
    Case("fp32", {"B": 2, "T": 5, "H": 2, "E": 8, "C": 9, "bias": 1}),
    Case("no bias, bf16", {"B": 1, "T": 7, "H": 3, "E": 16, "C": 7, "bias": 0}, torch.bfloat16),
    Case("one position", {"B": 2, "T": 1, "H": 2, "E": 8, "C": 2, "bias": 1}),
)

Inputs = tuple[Tensor, "Tensor | None", Tensor, Tensor]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Scores spread over a few units, in an empty cache."""
    B, T, H, E, C = (case[letter] for letter in "BTHEC")
    generator = torch.Generator().manual_seed(seed)
    qkv = 1.5 * torch.randn(B, T, 3, H, E, generator=generator, dtype=torch.float32)
    bias = 0.5 * torch.randn(3 * H * E, generator=generator, dtype=torch.float32)
    qkv, bias = qkv.to(case.dtype).to(device), bias.to(case.dtype).to(device)
    keys, values = torch.zeros(2, B, H, C, E, dtype=case.dtype, device=device)
    return qkv, bias if case["bias"] else None, keys, values


def run(
    qkv: Tensor, bias: Tensor | None, keys: Tensor, values: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the caches that were written."""
    return prefill_attention(qkv, keys, values, bias=bias, backend=backend), keys, values


def _definition(dtype: torch.dtype, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Written out in ``dtype``: scores, mask, softmax."""
    copies: list[Any] = [None if x is None else x.cpu().clone().to(dtype) for x in inputs]
    qkv, bias, keys, values = copies
    B, T, _, H, E = qkv.shape
    q, k, v = (qkv if bias is None else qkv + bias.view(3, H, E)).permute(2, 0, 3, 1, 4).unbind(0)
    keys[:, :, :T], values[:, :, :T] = k, v
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = (q @ k.transpose(2, 3) * E**-0.5).masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).reshape(B, T, H * E), keys, values


def define(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _definition(torch.float64, *inputs)


def check(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> None:
    """Errors against float64 at most twice those of the form written out in the same dtype, plus :func:`allowance` of
    the largest value; the cache beyond the prefix is untouched."""
    plain = _definition(inputs[0].dtype, *inputs)
    check_errors("output", got[0], wanted[0], plain[0], absolute=allowance(inputs[0], inputs[1], plain[1]))
    for name, ours, exact, same in zip(("keys", "values"), got[1:], wanted[1:], plain[1:], strict=True):
        check_errors(name, ours, exact, same, absolute=1e-6)


def cost(case: Case) -> Cost:
    """Two products over the visible half; the projection is read, output and cache are written."""
    B, T, H, E = (case[letter] for letter in "BTHE")
    return Cost(2 * B * H * T * (T + 1) * E, case.dtype.itemsize * (6 * B * T * H * E + 3 * H * E))


SPEC = Spec(
    op="prefill_attention",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    backends=BACKENDS,
)

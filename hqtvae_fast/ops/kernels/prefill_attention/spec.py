"""Real cases, inputs, cost and tolerance of causal attention over a prefix. There is no kernel of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.decode_attention import int8
from hqtvae_fast.ops.kernels.local_attention.spec import allowance
from hqtvae_fast.ops.kernels.prefill_attention import BACKENDS, prefill_attention
from hqtvae_fast.ops.spec import Case, Cost, Spec, check_errors

TEXT = {"T": 64, "H": 24, "E": 64, "C": 127, "bias": 1}
CASES = (
    *(Case(f"S-text, batch {B}", {"B": B, "int8": 0} | TEXT, torch.bfloat16) for B in (1, 8, 50, 256)),
    Case("S-text, batch 512, in int8", {"B": 512, "int8": 1} | TEXT, torch.bfloat16),
)
SMALL_CASES = (
    Case("fp32", {"B": 2, "T": 5, "H": 2, "E": 8, "C": 9, "bias": 1, "int8": 0}),
    Case("no bias, bf16", {"B": 1, "T": 7, "H": 3, "E": 16, "C": 7, "bias": 0, "int8": 0}, torch.bfloat16),
    Case("one position", {"B": 2, "T": 1, "H": 2, "E": 8, "C": 2, "bias": 1, "int8": 0}),
    Case("in int8", {"B": 2, "T": 5, "H": 2, "E": 8, "C": 9, "bias": 1, "int8": 1}),
    Case("bf16, in int8", {"B": 1, "T": 7, "H": 3, "E": 16, "C": 7, "bias": 1, "int8": 1}, torch.bfloat16),
)

Inputs = tuple[Tensor, "Tensor | None", Tensor, Tensor, "Tensor | None"]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Scores spread over a few units, in an empty cache."""
    B, T, H, E, C = (case[letter] for letter in "BTHEC")
    generator = torch.Generator().manual_seed(seed)
    qkv = 1.5 * torch.randn(B, T, 3, H, E, generator=generator, dtype=torch.float32)
    bias = 0.5 * torch.randn(3 * H * E, generator=generator, dtype=torch.float32)
    qkv, bias = qkv.to(case.dtype).to(device), bias.to(case.dtype).to(device)
    keys, values = torch.zeros(2, B, H, C, E, dtype=torch.int8 if case["int8"] else case.dtype, device=device)
    scales = torch.zeros(2, B, H, C, dtype=torch.float32, device=device) if case["int8"] else None
    return qkv, bias if case["bias"] else None, keys, values, scales


def run(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    scales: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """The output, and the caches that were written."""
    y = prefill_attention(qkv, keys, values, bias=bias, scales=scales, backend=backend)
    return (y, keys, values) if scales is None else (y, keys, values, scales)


def _definition(dtype: torch.dtype, *inputs: Any) -> tuple[Tensor, ...]:
    """Written out in ``dtype``: scores, mask, softmax. What is cached in int8 is rounded from the inputs' own dtype."""
    copies: list[Any] = [None if x is None else x.cpu().clone() for x in inputs]
    qkv, bias, keys, values, scales = copies
    B, T, _, H, E = qkv.shape
    own = qkv if bias is None else qkv + bias.view(3, H, E)
    q, k, v = (qkv.to(dtype) if bias is None else qkv.to(dtype) + bias.to(dtype).view(3, H, E)).permute(2, 0, 3, 1, 4)
    if scales is None:
        keys, values = keys.to(dtype), values.to(dtype)
        keys[:, :, :T], values[:, :, :T] = k, v
    else:
        for part, kept in enumerate((keys, values)):
            kept[:, :, :T], scales[part, :, :, :T] = int8.rounded(own[:, :, 1 + part].transpose(1, 2))
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = (q @ k.transpose(2, 3) * E**-0.5).masked_fill(hidden, float("-inf")).softmax(dim=-1)
    y = (weights @ v).transpose(1, 2).reshape(B, T, H * E)
    return (y, keys, values) if scales is None else (y, keys, values, scales)


def define(*inputs: Any) -> tuple[Tensor, ...]:
    return _definition(torch.float64, *inputs)


def check(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> None:
    """Errors against float64 at most twice those of the form written out in the same dtype, plus :func:`allowance` of
    the largest value; the cache beyond the prefix is untouched. In int8 what is cached is the definition's, bit for
    bit."""
    plain, eight = _definition(inputs[0].dtype, *inputs), inputs[4] is not None
    seen = None if eight else plain[1]
    check_errors("output", got[0], wanted[0], plain[0], absolute=allowance(inputs[0], inputs[1], seen))
    for name, ours, exact, same in zip(("keys", "values", "scales"), got[1:], wanted[1:], plain[1:], strict=False):
        if eight:
            assert torch.equal(ours.cpu(), exact), f"{name}: others than those of the definition"
        else:
            check_errors(name, ours, exact, same, absolute=1e-6)


def cost(case: Case) -> Cost:
    """Two products over the visible half; the projection is read, output and cache are written."""
    B, T, H, E = (case[letter] for letter in "BTHE")
    size, cached = case.dtype.itemsize, E + 4 if case["int8"] else case.dtype.itemsize * E
    return Cost(2 * B * H * T * (T + 1) * E, size * (4 * B * T * H * E + 3 * H * E) + 2 * B * T * H * cached)


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

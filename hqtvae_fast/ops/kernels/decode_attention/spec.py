"""Real cases, inputs, cost, tolerance and compilations of attention over the cache, one new position at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops import third_party
from hqtvae_fast.ops.kernels.decode_attention import BACKENDS, decode_attention, reference, triton
from hqtvae_fast.ops.kernels.local_attention.spec import allowance
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant, check_errors
from hqtvae_fast.ops.triton_launch import TRITON_NAMES


def _case(name: str, B: int, H: int, E: int, start: int, C: int, dtype: torch.dtype, bias: int = 1) -> Case:
    return Case(name, {"B": B, "H": H, "E": E, "start": start, "C": C, "bias": bias}, dtype)


CASES = tuple(
    _case(f"S, {start} positions, batch {B}", B, 24, 64, start, C, torch.bfloat16)
    for B in (1, 8, 50, 256)
    for start, C in ((32, 64), (63, 64), (127, 128))
)
SMALL_CASES = (
    _case("empty cache", 2, 2, 16, 0, 4, torch.float32),
    _case("part of a block, bf16", 2, 2, 32, 5, 9, torch.bfloat16),
    _case("two blocks, heads of 20", 1, 2, 20, 70, 71, torch.float32),
    _case("no bias, fp16", 1, 1, 16, 63, 64, torch.float16, bias=0),
)

Inputs = tuple[Tensor, "Tensor | None", Tensor, Tensor, int, Tensor]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Scores spread over a few units; the position is on the device, as a captured step has it."""
    B, H, E, C = (case[letter] for letter in "BHEC")
    generator = torch.Generator().manual_seed(seed)
    qkv = 1.5 * torch.randn(B, 1, 3, H, E, generator=generator, dtype=torch.float32)
    bias = 0.5 * torch.randn(3 * H * E, generator=generator, dtype=torch.float32)
    cache = torch.randn(2, B, H, C, E, generator=generator, dtype=torch.float32)
    qkv, bias, cache = (tensor.to(case.dtype).to(device) for tensor in (qkv, bias, cache))
    start = torch.full((), case["start"], dtype=torch.int64, device=device)
    return qkv, bias if case["bias"] else None, cache[0], cache[1], 0, start


def run(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    fixed: int,
    start: Tensor,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the caches that were written."""
    return decode_attention(qkv, keys, values, start, bias=bias, backend=backend), keys, values


def _definition(dtype: torch.dtype | None, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    copies: list[Any] = [None if x is None else x.cpu().clone().to(dtype or x.dtype) for x in inputs[:4]]
    qkv, bias, keys, values = copies
    return reference.decode_attention(qkv, bias, keys, values, int(inputs[5])), keys, values


def define(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """In float64, without the rounding of new keys and values."""
    return _definition(torch.float64, *inputs)


def check(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> None:
    """Errors against float64, of the output and of what is cached, at most twice the reference's in the same dtype,
    plus :func:`allowance` of the largest value; nothing else in the caches is touched. ``inputs``: before the op."""
    plain = _definition(None, *inputs)
    check_errors("output", got[0], wanted[0], plain[0], absolute=allowance(inputs[0], inputs[1], plain[1]))
    for name, ours, exact, same in zip(("keys", "values"), got[1:], wanted[1:], plain[1:], strict=True):
        check_errors(name, ours, exact, same, absolute=1e-6)
    others = torch.arange(inputs[2].shape[2], dtype=torch.int64) != int(inputs[5])
    for ours, before in zip(got[1:], inputs[2:4], strict=True):
        assert torch.equal(ours[:, :, others], before[:, :, others]), "another position of the cache was changed"


def _cached(qkv: Tensor, bias: Tensor | None, keys: Tensor, values: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [B, H, T, E], keys and values being written, and who is seen [1, C]: the position is on the device, so
    that all of the cache must be looked at."""
    _, _, _, H, E = qkv.shape
    q, k, v = (qkv if bias is None else qkv + bias.view(3, H, E)).permute(2, 0, 3, 1, 4).unbind(0)
    keys.index_copy_(2, start[None], k)
    values.index_copy_(2, start[None], v)
    return q, (torch.arange(keys.shape[2], dtype=torch.int64, device=start.device) <= start)[None]


def flash_attn(qkv: Tensor, bias: Tensor | None, keys: Tensor, values: Tensor, fixed: int, start: Tensor) -> Tensor:
    """Its kernel for caches, which writes the new position too and stops at the last one. The bias comes before."""
    package = third_party.attention("flash_attn", qkv)
    B, _, _, H, E = qkv.shape
    q, k, v = (qkv if bias is None else qkv + bias.view(3, H, E)).unbind(2)
    caches, lengths = (keys.transpose(1, 2), values.transpose(1, 2)), start.to(torch.int32).repeat(B)
    return package.flash_attn_with_kvcache(q, *caches, k, v, cache_seqlens=lengths).flatten(2)


def xformers(qkv: Tensor, bias: Tensor | None, keys: Tensor, values: Tensor, fixed: int, start: Tensor) -> Tensor:
    """With the mask as a bias on the scores, for its own masks want the lengths on the host."""
    third_party.attention("xformers", qkv)
    ops = third_party.installed("xformers.ops")
    q, seen = _cached(qkv, bias, keys, values, start)
    hidden = torch.zeros_like(seen, dtype=qkv.dtype).masked_fill_(~seen, float("-inf"))
    shape = (*q.shape[:3], keys.shape[2])
    scores = {"attn_bias": hidden.expand(shape)}
    return ops.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, keys, values)), **scores).flatten(2)


def cost(case: Case) -> Cost:
    """Two products of a query with every position; those cached are read, the new one is written."""
    B, H, E, start = (case[letter] for letter in ("B", "H", "E", "start"))
    return Cost(4 * B * H * (start + 1) * E, case.dtype.itemsize * (B * H * E * (4 + 2 + 2 * start) + 3 * H * E))


def variants(arch: int) -> list[Variant]:
    """Heads of 64, which all presets have, with and without bias."""
    from hqtvae_fast.ops.kernels.decode_attention import triton_kernels

    made = []
    for dtype in (torch.float32, torch.bfloat16):
        for biased in (True, False):
            names = ("qkv", "bias", "keys", "values", "out") if biased else ("qkv", "keys", "values", "out")
            signature = dict.fromkeys(names, f"*{TRITON_NAMES[dtype]}") | {"start": "*i64", "scale": "fp32"}
            signature |= dict.fromkeys(("H", "E", "C"), "i32")
            constants: dict[str, Any] = {} if biased else {"bias": None}
            constants |= {"WIDTH": 64, "TRIGGER": arch >= 90}
            name = f"decode attention {TRITON_NAMES[dtype]}{' with bias' if biased else ''}"
            tiles = triton.TILES if dtype is torch.bfloat16 and biased else {}
            for key, tile in {"": triton.DEFAULT, **tiles}.items():
                launch = (signature, constants | {"BLOCK": tile.block}, (*names, "E"), tile.warps, 3)
                made.append(Variant(name + (key and f", {key}"), triton_kernels.decode_attention_kernel, *launch))
    return made


SPEC = Spec(
    op="decode_attention",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    variants=variants,
    backends=BACKENDS,
    baselines={"flash-attn": flash_attn, "xformers": xformers},
)

"""Real cases, inputs, cost, tolerance and compilations of attention over the cache, one new position at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import third_party
from hqtvae_fast.ops.kernels.decode_attention import BACKENDS, decode_attention, int8, reference, triton
from hqtvae_fast.ops.kernels.local_attention.spec import allowance
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant, check_errors
from hqtvae_fast.ops.triton_launch import TRITON_NAMES


def _case(name: str, B: int, H: int, E: int, start: int, C: int, dtype: torch.dtype, **more: int) -> Case:
    return Case(name, {"B": B, "H": H, "E": E, "start": start, "C": C, "bias": 1, "int8": 0} | more, dtype)


FULL = ((32, 64), (63, 64), (127, 128))
CASES = (
    *(
        _case(f"S, {start} positions, batch {B}", B, 24, 64, start, C, torch.bfloat16)
        for B in (1, 8, 50, 256)
        for start, C in FULL
    ),
    *(
        _case(f"S, {start} positions, batch {B}, in int8", B, 24, 64, start, C, torch.bfloat16, int8=1)
        for B in (1, 50, 256, 512)
        for start, C in FULL
    ),
)
SMALL_CASES = (
    _case("empty cache", 2, 2, 16, 0, 4, torch.float32),
    _case("part of a block, bf16", 2, 2, 32, 5, 9, torch.bfloat16),
    _case("two blocks, heads of 20", 1, 2, 20, 70, 71, torch.float32),
    _case("no bias, fp16", 1, 1, 16, 63, 64, torch.float16, bias=0),
    _case("empty cache, in int8", 2, 2, 16, 0, 4, torch.float32, int8=1),
    _case("no bias, bf16, in int8", 2, 3, 32, 5, 9, torch.bfloat16, int8=1, bias=0),
    _case("two blocks, heads of 20, in int8", 1, 2, 20, 70, 71, torch.float32, int8=1),
    _case("fp16, in int8", 2, 1, 16, 63, 64, torch.float16, int8=1),
)

Inputs = tuple[Tensor, "Tensor | None", Tensor, Tensor, int, Tensor, "Tensor | None"]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Scores spread over a few units; the position is on the device, as a captured step has it."""
    B, H, E, C = (case[letter] for letter in "BHEC")
    generator = torch.Generator().manual_seed(seed)
    qkv = 1.5 * torch.randn(B, 1, 3, H, E, generator=generator, dtype=torch.float32)
    bias = 0.5 * torch.randn(3 * H * E, generator=generator, dtype=torch.float32)
    cache = torch.randn(2, B, H, C, E, generator=generator, dtype=torch.float32)
    qkv, bias, cache = (tensor.to(case.dtype).to(device) for tensor in (qkv, bias, cache))
    start = torch.full((), case["start"], dtype=torch.int64, device=device)
    keys, values, scales = cache[0], cache[1], None
    if case["int8"]:
        (keys, key_scales), (values, value_scales) = (int8.rounded(part) for part in (keys, values))
        scales = torch.stack([key_scales, value_scales])
    return qkv, bias if case["bias"] else None, keys, values, 0, start, scales


def run(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    fixed: int,
    start: Tensor,
    scales: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """The output, and the caches that were written."""
    y = decode_attention(qkv, keys, values, start, bias=bias, scales=scales, backend=backend)
    return (y, keys, values) if scales is None else (y, keys, values, scales)


def _definition(dtype: torch.dtype | None, *inputs: Any) -> tuple[Tensor, ...]:
    copies: list[Any] = [None if x is None else x.cpu().clone() for x in (*inputs[:4], inputs[6])]
    qkv, bias, keys, values, scales = copies
    if scales is not None:
        q, seen = int8.append(qkv, bias, keys, values, scales, inputs[5].cpu())
        y = int8.attend(q.to(dtype or q.dtype), keys, values, scales, seen)
        return y.transpose(1, 2).flatten(2).to(dtype or q.dtype), keys, values, scales
    copies = [None if x is None else x.to(dtype or x.dtype) for x in copies]
    qkv, bias, keys, values, _ = copies
    return reference.decode_attention(qkv, bias, keys, values, int(inputs[5])), keys, values


def define(*inputs: Any) -> tuple[Tensor, ...]:
    """In float64, without the rounding of new keys and values; of a cache in int8, over what it then holds."""
    return _definition(torch.float64, *inputs)


def check(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> None:
    """Errors against float64, of the output and of what is cached, at most twice the reference's in the same dtype,
    plus :func:`allowance` of the largest value; in int8 what is cached is the definition's, bit for bit. Nothing else
    in the caches is touched. ``inputs``: before the op."""
    plain, scales = _definition(None, *inputs), inputs[6]
    if scales is None:
        absolute = allowance(inputs[0], inputs[1], plain[1])
    else:
        absolute = allowance(inputs[0], inputs[1], plain[1].float() * plain[3][0].unsqueeze(-1))
    check_errors("output", got[0], wanted[0], plain[0], absolute=absolute)
    for name, ours, exact, same in zip(("keys", "values"), got[1:3], wanted[1:3], plain[1:3], strict=True):
        if scales is None:
            check_errors(name, ours, exact, same, absolute=1e-6)
        else:
            assert torch.equal(ours.cpu(), exact), f"{name}: other numbers than those of the definition"
    if scales is not None:
        assert torch.equal(got[3].cpu(), wanted[3]), "scales: others than those of the definition"
    others = torch.arange(inputs[2].shape[2], dtype=torch.int64) != int(inputs[5])
    for ours, before in zip(got[1:3], inputs[2:4], strict=True):
        assert torch.equal(ours[:, :, others], before[:, :, others]), "another position of the cache was changed"


def _cached(qkv: Tensor, bias: Tensor | None, keys: Tensor, values: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [B, H, T, E], keys and values being written, and who is seen [1, C]: the position is on the device, so
    that all of the cache must be looked at."""
    _, _, _, H, E = qkv.shape
    q, k, v = (qkv if bias is None else qkv + bias.view(3, H, E)).permute(2, 0, 3, 1, 4).unbind(0)
    keys.index_copy_(2, start[None], k)
    values.index_copy_(2, start[None], v)
    return q, (torch.arange(keys.shape[2], dtype=torch.int64, device=start.device) <= start)[None]


def flash_attn(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    fixed: int,
    start: Tensor,
    scales: Tensor | None = None,
) -> Tensor:
    """Its kernel for caches, which writes the new position too and stops at the last one. The bias comes before."""
    package = third_party.attention("flash_attn", qkv)
    _without_scales("flash_attn", scales)
    B, _, _, H, E = qkv.shape
    q, k, v = (qkv if bias is None else qkv + bias.view(3, H, E)).unbind(2)
    caches, lengths = (keys.transpose(1, 2), values.transpose(1, 2)), start.to(torch.int32).repeat(B)
    return package.flash_attn_with_kvcache(q, *caches, k, v, cache_seqlens=lengths).flatten(2)


def xformers(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    fixed: int,
    start: Tensor,
    scales: Tensor | None = None,
) -> Tensor:
    """With the mask as a bias on the scores, for its own masks want the lengths on the host."""
    third_party.attention("xformers", qkv)
    _without_scales("xformers", scales)
    ops = third_party.installed("xformers.ops")
    q, seen = _cached(qkv, bias, keys, values, start)
    hidden = torch.zeros_like(seen, dtype=qkv.dtype).masked_fill_(~seen, float("-inf"))
    shape = (*q.shape[:3], keys.shape[2])
    scores = {"attn_bias": hidden.expand(shape)}
    return ops.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, keys, values)), **scores).flatten(2)


def _without_scales(name: str, scales: Tensor | None) -> None:
    if scales is not None:
        raise BackendError(f"{name}: expected keys and values in the queries' dtype; got int8")


def cost(case: Case) -> Cost:
    """Two products of a query with every position; those cached are read, the new one is written."""
    B, H, E, start = (case[letter] for letter in ("B", "H", "E", "start"))
    size = case.dtype.itemsize
    cached = E + 4 if case["int8"] else size * E
    return Cost(4 * B * H * (start + 1) * E, size * (4 * B * H * E + 3 * H * E) + B * H * 2 * (start + 1) * cached)


def variants(arch: int) -> list[Variant]:
    """Heads of 64, which all presets have, with and without bias, and with either over a cache in int8."""
    from hqtvae_fast.ops.kernels.decode_attention import triton_kernels as kernels

    made = []
    for dtype in (torch.float32, torch.bfloat16):
        for biased in (True, False):
            every = dtype is torch.bfloat16 and biased
            name = f"{TRITON_NAMES[dtype]}{' with bias' if biased else ''}"
            pointers = dict.fromkeys(("qkv", "bias", "keys", "values", "out"), f"*{TRITON_NAMES[dtype]}")
            for key, tile in {"": triton.DEFAULT, **(triton.TILES if every else {})}.items():
                constants = {"WIDTH": 64, "BLOCK": tile.block}
                launch = (f"decode attention {name}", key, kernels.decode_attention_kernel, pointers, constants, tile)
                made.append(_variant(arch, biased, *launch))
            pointers |= {"keys": "*i8", "values": "*i8", "scales": "*fp32"}
            for key, tile in {"": triton.INT8, **(triton.INT8_TILES if every else {})}.items():
                constants = triton.int8_constants(tile, 64)
                own = f"decode attention in int8, {name}"
                launch = (own, key, kernels.decode_attention_int8_kernel, pointers, constants, tile)
                made.append(_variant(arch, biased, *launch))
    return made


def _variant(
    arch: int,
    biased: bool,
    name: str,
    key: str,
    kernel: Any,
    pointers: dict[str, str],
    constants: dict[str, int],
    tile: triton.Tile,
) -> Variant:
    taken = {each: kind for each, kind in pointers.items() if biased or each != "bias"}
    signature = taken | {"start": "*i64", "scale": "fp32"} | dict.fromkeys(("H", "E", "C"), "i32")
    own: dict[str, Any] = ({} if biased else {"bias": None}) | constants | {"TRIGGER": arch >= 90}
    return Variant(name + (key and f", {key}"), kernel, signature, own, (*taken, "E"), tile.warps, 3)


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

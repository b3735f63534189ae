"""Real cases, inputs, cost, tolerance and compilations of local attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import third_party
from hqtvae_fast.ops.kernels.local_attention import BACKENDS, local_attention, reference, triton
from hqtvae_fast.ops.kernels.local_attention.sdpa import cached
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant, check_errors
from hqtvae_fast.ops.triton_launch import TRITON_NAMES

# start and T: the passes of the head over two and three levels, and IET's or a teacher-forced pass (C = 0: no cache).
PASSES = {
    "pass 1": (0, 1, 5),
    "pass 1, no query": (0, 1, 5),
    "pass 2": (1, 4, 5),
    "IET": (0, 5, 0),
    "pass 3": (5, 16, 21),
}


def _case(name: str, B: int, passing: str, sizes: tuple[int, int], levels: int, dtype: torch.dtype) -> Case:
    (start, T, C), (H, E) = PASSES[passing], sizes
    fixed = {"T": T, "parts": parts_of(passing), "start": start, "C": C, "bias": 1}
    return Case(name, {"B": B, "H": H, "E": E, "levels": levels} | fixed, dtype)


def parts_of(passing: str) -> int:
    """Queries, keys and values, or two of them."""
    return 2 if passing.endswith("no query") else 3


CASES = tuple(
    _case(f"S, {passing}, batch {B}", B, passing, (24, 64), 0, torch.bfloat16)
    for B in (1, 8, 50, 256)
    for passing in PASSES
)
SMALL_CASES = (
    _case("pass 1", 2, "pass 1", (2, 16), 0, torch.float32),
    _case("pass 1, no query, bf16", 2, "pass 1, no query", (2, 16), 0, torch.bfloat16),
    _case("pass 2, bf16", 2, "pass 2", (2, 16), 0, torch.bfloat16),
    _case("IET, heads of 20", 2, "IET", (3, 20), 0, torch.float32),
    _case("all positions by level", 1, "IET", (2, 16), 1, torch.float16),
    _case("pass 3", 1, "pass 3", (2, 16), 0, torch.float32),
    Case(
        "21 positions by level",
        {"B": 1, "T": 21, "parts": 3, "H": 1, "E": 8, "start": 0, "C": 0, "levels": 1, "bias": 0},
    ),
)

Inputs = tuple[Tensor, "Tensor | None", "Tensor | None", "Tensor | None", int, str]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Scores spread over a few units; what a cache holds beyond the positions that count is random."""
    B, T, parts, H, E, C = (case[name] for name in ("B", "T", "parts", "H", "E", "C"))
    generator = torch.Generator().manual_seed(seed)
    qkv = 1.5 * torch.randn(B, T, parts, H, E, generator=generator, dtype=torch.float32)
    bias = 0.5 * torch.randn(parts * H * E, generator=generator, dtype=torch.float32)
    cache = torch.randn(2, B, H, max(C, 1), E, generator=generator, dtype=torch.float32)
    qkv, bias, cache = (tensor.to(case.dtype).to(device) for tensor in (qkv, bias, cache))
    keys, values = (cache[0], cache[1]) if C else (None, None)
    return qkv, bias if case["bias"] else None, keys, values, case["start"], "levels" if case["levels"] else "full"


Result = tuple[Tensor, "Tensor | None", "Tensor | None"]


def run(
    qkv: Tensor,
    bias: Tensor | None,
    keys: Tensor | None,
    values: Tensor | None,
    start: int,
    mask: Any,
    *,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """The output, then the caches that were written, if any."""
    y = local_attention(qkv, bias, keys, values, start, mask=mask, backend=backend)
    return (y,) if keys is None or values is None else (y, keys, values)


def _definition(dtype: torch.dtype | None, *inputs: Any) -> tuple[Tensor, ...]:
    copies: list[Any] = [x.cpu().clone().to(dtype or x.dtype) if isinstance(x, Tensor) else x for x in inputs]
    qkv, bias, keys, values, start, mask = copies
    y = reference.local_attention(qkv, bias, keys, values, start, mask)
    return (y,) if keys is None else (y, keys, values)


def define(*inputs: Any) -> tuple[Tensor, ...]:
    """In float64, without the roundings of new queries, keys and values."""
    return _definition(torch.float64, *inputs)


def allowance(qkv: Tensor, bias: Tensor | None, keys: Tensor | None) -> float:
    """What an attention may be off by, of the largest value: 1e-6, and as much as one rounding to fp32 of the largest
    score |s| changes its exponential, 2^-24 |s|, where that is more (above 16: far outside of a model's). Less would
    refuse what is exact but for that rounding: 1e-6 alone refuses it for 23 of 2,000 seeds of rows ten times as large.
    ``keys``: the cache as it was written."""
    parts = qkv.cpu().double()
    if bias is not None:
        parts = parts + bias.cpu().double().view(parts.shape[2:])
    q, k = parts[:, :, 0].transpose(1, 2), parts[:, :, -2].transpose(1, 2)
    seen = k if keys is None else torch.cat([k, keys.cpu().double()], dim=2)
    largest = float((q @ seen.transpose(2, 3)).abs().max()) * q.shape[-1] ** -0.5
    return max(1e-6, 2**-24 * largest)


def check(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> None:
    """Errors against float64, of the output and of what is cached, at most twice the reference's in the same dtype,
    plus :func:`allowance` of the largest value. ``inputs`` are as before the op wrote to the caches."""
    plain = _definition(None, *inputs)
    written = None if len(plain) == 1 else plain[1]
    check_errors("output", got[0], wanted[0], plain[0], absolute=allowance(inputs[0], inputs[1], written))
    for name, ours, exact, same in zip(("keys", "values"), got[1:], wanted[1:], plain[1:], strict=False):
        check_errors(name, ours, exact, same, absolute=1e-6)
    start, T = inputs[4], inputs[0].shape[1]
    for ours, before in zip(got[1:], inputs[2:4], strict=False):
        assert torch.equal(ours[:, :, :start], before[:, :, :start]), "a cached position was changed"
        assert torch.equal(ours[:, :, start + T :], before[:, :, start + T :]), "the cache was written beyond the end"


Maybe = Tensor | None


def flash_attn(qkv: Tensor, bias: Maybe, keys: Maybe, values: Maybe, start: int, mask: str) -> Tensor:
    """Has no mask by level."""
    package = third_party.attention("flash_attn", qkv)
    if mask != "full":
        raise BackendError(f"flash_attn: expected mask 'full'; got {mask!r}")
    parts = cached(qkv, bias, keys, values, start)
    return package.flash_attn_func(*(part.transpose(1, 2) for part in parts)).flatten(2)


def xformers(qkv: Tensor, bias: Maybe, keys: Maybe, values: Maybe, start: int, mask: str) -> Tensor:
    """Takes a mask only as a bias padded to multiples of 8 positions, which these are not."""
    third_party.attention("xformers", qkv)
    if mask != "full":
        raise BackendError(f"xformers: expected mask 'full'; got {mask!r}")
    parts = cached(qkv, bias, keys, values, start)
    ops = third_party.installed("xformers.ops")
    return ops.memory_efficient_attention(*(part.transpose(1, 2) for part in parts)).flatten(2)


def cost(case: Case) -> Cost:
    """Two products of every query with every position; the projection is read, output and new cache are written."""
    B, T, parts, H, E, start = (case[name] for name in ("B", "T", "parts", "H", "E", "start"))
    cached = 2 * (T + start) if case["C"] else 0
    return Cost(4 * B * H * T * (T + start) * E, case.dtype.itemsize * H * E * (B * ((parts + 1) * T + cached) + parts))


def variants(arch: int) -> list[Variant]:
    """The passes of S, M, L (heads of 64; FFHQ's are as wide)."""
    from hqtvae_fast.ops.kernels.local_attention import triton_kernels

    made = []
    for dtype in (torch.float32, torch.bfloat16):
        for passing, (start, T, C) in PASSES.items():
            pointers = ("qkv", "bias", "keys", "values", "out") if C else ("qkv", "bias", "out")
            signature = dict.fromkeys(pointers, f"*{TRITON_NAMES[dtype]}") | {"scale": "fp32"}
            signature |= dict.fromkeys(("H", "E", "C"), "i32")
            constants: dict[str, Any] = {} if C else {"keys": None, "values": None}
            constants |= triton.constants(T, parts_of(passing), 64, start, "full") | {"TRIGGER": arch >= 90}
            name = f"local attention {passing} {TRITON_NAMES[dtype]}"
            launch = (triton_kernels.local_attention_kernel, signature, constants, (*pointers, "E"))
            made.append(Variant(name, *launch, triton.warps(start + T), 3))
            if dtype is torch.bfloat16 and passing in ("pass 1", "pass 2", "IET"):
                made += [Variant(f"{name}, {key}", *launch, tile.warps, 3) for key, tile in triton.TILES.items()]
    return made


SPEC = Spec(
    op="local_attention",
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

"""Real cases, inputs, cost, rule of agreement and compilations of the draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.sample_logits import BACKENDS, sample_logits, triton
from hqtvae_fast.ops.kernels.sample_logits.noise import gumbel, random_words
from hqtvae_fast.ops.kernels.sample_logits.reference import guided_logits
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant
from hqtvae_fast.ops.triton_launch import TRITON_NAMES, Warps

BF16 = torch.bfloat16
# k and p: top-k, and top-p in thousandths; 0: no such filter. The published settings are k = 2048 (ImageNet), 4096
# (FFHQ) and none (CC-15M). G: draws of one image at a time, one top code or four bottom codes. s: guidance's scale in
# hundredths, of B images that have 2 B rows.
CASES = tuple(
    Case(f"S, {what}, batch {B}, {filters}", {"B": B, "G": G, "K": 8192, "k": k, "p": p}, torch.bfloat16)
    for B in (1, 8, 50, 256)
    for what, G in (("top", 1), ("bottom", 4))
    for filters, k, p in (("k = 2048", 2048, 0), ("no filter", 0, 0), ("k = 2048, p = 0.9", 2048, 900))
) + tuple(
    Case(f"S, {what}, batch {B}, guided, k = 2048", {"B": B, "G": G, "K": 8192, "k": 2048, "p": 0, "s": 200}, BF16)
    for B in (1, 50)
    for what, G in (("top", 1), ("bottom", 4))
)
SMALL_CASES = (
    Case("no filter", {"B": 5, "G": 2, "K": 100, "k": 0, "p": 0}),
    Case("greedy", {"B": 5, "G": 2, "K": 100, "k": 1, "p": 0}),
    Case("top-k", {"B": 5, "G": 1, "K": 100, "k": 7, "p": 0}, torch.bfloat16),
    # So flat (percent of the usual spread) that a code too many would be drawn: the edge itself is seen.
    Case("top-k of a flat row", {"B": 16, "G": 1, "K": 8, "k": 3, "p": 0, "flat": 1}),
    Case("top-p of a flat row", {"B": 16, "G": 1, "K": 8, "k": 0, "p": 300, "flat": 1}, torch.bfloat16),
    Case("top-p of equal codes", {"B": 16, "G": 1, "K": 8, "k": 0, "p": 300, "flat": 0}),
    Case("top-p", {"B": 5, "G": 4, "K": 64, "k": 0, "p": 600}),
    Case("both", {"B": 5, "G": 1, "K": 33, "k": 20, "p": 800}, torch.float16),
    Case("one code", {"B": 3, "G": 1, "K": 1, "k": 1, "p": 500}),
    Case("guided", {"B": 5, "G": 2, "K": 100, "k": 0, "p": 0, "s": 250}, BF16),
    Case("guided, top-k", {"B": 5, "G": 1, "K": 100, "k": 7, "p": 0, "s": 150}, BF16),
    Case("guided, both", {"B": 4, "G": 4, "K": 33, "k": 20, "p": 800, "s": 300}),
    Case("guided, greedy", {"B": 5, "G": 1, "K": 40, "k": 1, "p": 0, "s": 50}, torch.float16),
    Case("guided by nothing", {"B": 4, "G": 2, "K": 64, "k": 30, "p": 0, "s": 100}, BF16),
    Case("k = K, p = 1", {"B": 3, "G": 2, "K": 50, "k": 50, "p": 1000}, torch.bfloat16),
)
EDGE = 1e-5
"""How near to p a cumulative sum must come for either side of it to be right: fp32 sums of K terms differ by less."""

Inputs = tuple[Any, ...]
"""Logits, seeds, step, position, temperature, top-k, top-p and, in guided cases alone, scales [B]."""


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Logits as spread as a trained model's, some of them equal and some -inf; any 64-bit seeds. Of guided rows each
    with its condition withheld is near the one with it."""
    B, G, K, guided = case["B"], case["G"], case["K"], "s" in case.sizes
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, G, K, generator=generator, dtype=torch.float32)
    if "flat" in case.sizes:
        logits *= case["flat"] / 100
    else:
        logits[:, 0] = logits[:, 0].round()
    if K > 1:
        logits[-1, -1, ::3] = float("-inf")
    if guided:
        logits = torch.cat([logits, logits + torch.randn(B, G, K, generator=generator, dtype=torch.float32)])
    seeds = torch.randint(-(2**62), 2**62, (B,), generator=generator, dtype=torch.int64)
    k, p = case["k"] or None, case["p"] / 1000 or None
    inputs = (logits.to(case.dtype).to(device), seeds.to(device), 5, 1, 0.95, k, p)
    return (*inputs, torch.full((B,), case["s"] / 100, dtype=torch.float32, device=device)) if guided else inputs


def run(
    logits: Tensor,
    seeds: Tensor,
    step: int,
    position: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    guidance: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
    return sample_logits(logits, seeds=seeds, step=step, position=position, backend=backend, **options)


def define(*inputs: Any) -> Tensor:
    copies: list[Any] = [x.cpu() if isinstance(x, Tensor) else x for x in inputs]
    return run(*copies, backend="reference")


def combined(logits: Tensor, guidance: Tensor | None) -> Tensor:
    """What is drawn from, on the CPU."""
    if guidance is None:
        return logits.cpu()
    shown, withheld = logits.cpu().chunk(2)
    return guided_logits(shown, withheld, guidance.cpu().view(-1, 1, 1))


def exact_scores(
    logits: Tensor,
    seeds: Tensor,
    step: int,
    position: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    guidance: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [B, G, K] as the draw compares them (fp32 by definition), which codes may be drawn, and which must be
    among those: they differ by the codes at top-p's very edge. The filters are taken from a sort in float64."""
    logits = combined(logits, guidance)
    _, G, K = logits.shape
    scaled = logits.float() / temperature
    noise = torch.stack([gumbel(random_words(seeds.cpu(), step, position + g, K)) for g in range(G)], dim=1)
    allowed = torch.ones_like(scaled, dtype=torch.bool)
    if top_k is not None:
        allowed = scaled >= scaled.sort(dim=2, descending=True).values[:, :, min(top_k, K) - 1 :][:, :, :1]
    if top_p is None or top_p >= 1:
        return scaled + noise, allowed, allowed
    kept = scaled.double().masked_fill(~allowed, float("-inf"))
    ordered, order = kept.sort(dim=2, descending=True, stable=True)
    before = ordered.softmax(dim=2).cumsum(dim=2).roll(1, dims=2)
    before[:, :, 0] = -1
    before = torch.empty_like(before).scatter(2, order, before)
    return scaled + noise, allowed & (before < top_p + EDGE), allowed & (before < top_p - EDGE)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """The draws are those of the definition. Where a cumulative sum comes within 1e-5 of p, what is kept there may
    differ from the reference's; then no code that must be kept has a higher score, and an equal one no lower index."""
    assert got.shape == wanted.shape, f"expected {list(wanted.shape)}; got {list(got.shape)}"
    got = got.cpu()
    guidance = inputs[7] if len(inputs) > 7 else None
    if guidance is not None:
        got, again = got.chunk(2)
        assert torch.equal(got, again), "expected an image's code in both of its rows"
    if inputs[5] == 1:
        assert torch.equal(got, combined(inputs[0], guidance).argmax(dim=2)), (
            "k = 1: expected argmax with the lowest index"
        )
        return
    scores, may, must = exact_scores(*inputs)
    drawn = got[..., None]
    assert bool(may.gather(2, drawn).all()), "a code outside the allowed set was drawn"
    index = torch.arange(scores.shape[2], dtype=torch.int64)
    own = scores.gather(2, drawn)
    better = must & ((scores > own) | ((scores == own) & (index < drawn)))
    assert not bool(better.any()), f"{int(better.any(dim=2).sum())} draws are not those of the definition"


def cost(case: Case) -> Cost:
    """A logit is read once; of guided rows two. About 75 operations a code make its noise, as many as a GPU
    has to issue for it."""
    B, G, K = case["B"], case["G"], case["K"]
    rows = 2 if "s" in case.sizes else 1
    return Cost(75 * B * G * K, rows * B * G * (K * case.dtype.itemsize + 8))


def describe(logits: Tensor, *others: Any, tile: Warps | None = None) -> dict[str, str]:
    return triton.describe(logits, tile=tile)


def softmax_multinomial(
    logits: Tensor,
    seeds: Tensor,
    step: int,
    position: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    guidance: Tensor | None = None,
) -> Tensor:
    """As released: sorts, then torch.multinomial, with other noise."""
    if guidance is not None:
        shown, withheld = logits.float().chunk(2)
        logits = torch.lerp(withheld, shown, guidance.view(-1, 1, 1))
    B, G, K = logits.shape
    x = logits.float().view(B * G, K) / temperature
    if top_k is not None:
        x = x.masked_fill(x < x.topk(top_k, dim=1).values[:, -1:], float("-inf"))
    probabilities = x.softmax(dim=1)
    if top_p is not None:
        ordered, order = probabilities.sort(dim=1, descending=True)
        drop = ordered.cumsum(dim=1) - ordered >= top_p
        probabilities = probabilities.scatter(1, order, ordered.masked_fill(drop, 0.0))
    drawn = probabilities.multinomial(1).view(B, G)
    return drawn if guidance is None else drawn.repeat(2, 1)


def variants(arch: int) -> list[Variant]:
    """Rows of S and its siblings in each dtype. fp16 is compiled as bf16 is but for a conversion, and is left out."""
    from hqtvae_fast.ops.kernels.sample_logits import triton_kernels

    strides = [name for name in triton_kernels.draw_kernel.arg_names if name.startswith("stride")]
    aligned, made = ("logits", "K", "stride_b", "stride_g"), []
    for dtype in (torch.float32, torch.bfloat16):
        pointers = {"logits": f"*{TRITON_NAMES[dtype]}", "out": "*i64", "invalid": "*u1", "seeds": "*i64"}
        pointers |= {"step": "*i64", "position": "*i64", "temperature": "*fp32", "top_k": "*i64", "top_p": "*fp32"}
        signature = pointers | {"guidance": "*fp32"} | dict.fromkeys(["B", "G", "K", *strides], "i32")
        for K in (1024, 8192):
            name = f"draw {K} {TRITON_NAMES[dtype]}"
            constants = {"BITS": 8 * dtype.itemsize, "CODES": triton.codes(K), "INTERPRET": False, "GUIDED": False}
            guided = constants | {"BITS": 32, "GUIDED": True}
            launches = [(name, constants, triton.warps(K)), (f"{name}, guided", guided, triton.warps(K))]
            tiles = triton.TILES.items() if K == 8192 else ()
            launches += [(f"{name}, {key}", constants, tile.warps) for key, tile in tiles]
            for own, constant, warps in launches:
                launch = (triton_kernels.draw_kernel, signature, constant, aligned)
                made.append(Variant(own, *launch, warps, 3, fp_fusion=False))
    return made


SPEC = Spec(
    op="sample_logits",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    variants=variants,
    describe=describe,
    backends=BACKENDS,
    baselines={"torch, sort and multinomial": softmax_multinomial},
)

"""Real cases, inputs, cost, tolerance and compilations of the head's product with the draw."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.draw_from_head import BACKENDS, draw_from_head, triton
from hqtvae_fast.ops.kernels.sample_logits import sample_logits
from hqtvae_fast.ops.kernels.sample_logits.noise import gumbel, random_words
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant
from hqtvae_fast.ops.triton_launch import TRITON_NAMES

CASES = tuple(
    Case(f"S, {what}, batch {B}", {"B": B, "G": G, "D": 1536, "K": 8192}, torch.bfloat16)
    for B in (1, 8, 50, 256)
    for what, G in (("top", 1), ("bottom", 4))
)
SMALL_CASES = (
    Case("skinny, no multiples", {"B": 3, "G": 2, "D": 50, "K": 77}),
    Case("many rows", {"B": 9, "G": 4, "D": 64, "K": 256}),
    Case("skinny, bf16", {"B": 2, "G": 4, "D": 200, "K": 96}, torch.bfloat16),
    Case("many rows, fp16", {"B": 70, "G": 1, "D": 33, "K": 130}, torch.float16),
    Case("one code", {"B": 2, "G": 1, "D": 16, "K": 1}),
)

Inputs = tuple[Tensor, Tensor, Tensor, int, int, float]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Logits as spread as a trained model's; any 64-bit seeds."""
    B, G, D, K = (case[letter] for letter in "BGDK")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, G, D, generator=generator, dtype=torch.float32)
    weight = 3 * D**-0.5 * torch.randn(K, D, generator=generator, dtype=torch.float32)
    seeds = torch.randint(-(2**62), 2**62, (B,), generator=generator, dtype=torch.int64)
    return x.to(case.dtype).to(device), weight.to(case.dtype).to(device), seeds.to(device), 5, 1, 0.95


def run(
    x: Tensor,
    weight: Tensor,
    seeds: Tensor,
    step: int,
    position: int,
    temperature: float,
    *,
    backend: str | None = None,
) -> Tensor:
    options: dict[str, Any] = {"seeds": seeds, "step": step, "position": position}
    return draw_from_head(x, weight, temperature=temperature, backend=backend, **options)


def define(*inputs: Any) -> Tensor:
    copies: list[Any] = [x.cpu() if isinstance(x, Tensor) else x for x in inputs]
    return run(*copies, backend="reference")


def exact_scores(
    x: Tensor, weight: Tensor, seeds: Tensor, step: int, position: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Scores [B, G, K] from float64 logits, and how far each may be off: what a product in the inputs' dtype rounds
    (its sum in fp32, in any order, then itself), and the roundings of the scores."""
    x, weight, seeds = x.cpu(), weight.cpu(), seeds.cpu()
    wide, eps = x.double(), torch.finfo(torch.float32).eps
    logits = F.linear(wide, weight.double())
    sums = eps * x.shape[-1] ** 0.5 * F.linear(wide.abs(), weight.double().abs())
    off = (sums + torch.finfo(x.dtype).eps / 2 * logits.abs()) / temperature
    noise = torch.stack([gumbel(random_words(seeds, step, position + g, len(weight))) for g in range(x.shape[1])], 1)
    scores = logits / temperature + noise
    return scores, off + 2 * eps * (scores.abs() + noise.abs())


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """No code's score is above the drawn one's by more than both may be off; so the codes are those of the definition
    wherever the best code leads by more than that."""
    assert got.shape == wanted.shape, f"expected {list(wanted.shape)}; got {list(got.shape)}"
    scores, off = exact_scores(*inputs)
    for name, codes in (("drawn", got.cpu()), ("the definition's", wanted.cpu())):
        assert bool(((codes >= 0) & (codes < scores.shape[2])).all()), f"{name}: a code out of range"
        highest_possible = (scores + off).gather(2, codes[..., None])
        beaten = (scores - off > highest_possible).any(dim=2)
        assert not bool(beaten.any()), f"{name}: {int(beaten.sum())} codes are not the best of their rows"


def cost(case: Case) -> Cost:
    """The weight and the rows once. The noise takes about 75 operations a code, beside the product's 2 D."""
    B, G, D, K = (case[letter] for letter in "BGDK")
    return Cost(B * G * K * (2 * D + 75), case.dtype.itemsize * (K * D + B * G * D) + 8 * B * G)


def product_then_draw(x: Tensor, weight: Tensor, seeds: Tensor, step: int, position: int, temperature: float) -> Tensor:
    """As the engine does it."""
    return sample_logits(F.linear(x, weight), temperature=temperature, seeds=seeds, step=step, position=position)


def variants(arch: int) -> list[Variant]:
    """The heads of S, M and L, whose width only counts rounds. fp16 is compiled as bf16 is but for its name."""
    from hqtvae_fast.ops.kernels.draw_from_head import triton_kernels

    made = []
    for dtype in (torch.float32, torch.bfloat16):
        own = {"few": triton.FEW, "many": triton.MANY}
        for name, tile in {**own, **{tile.name: tile for tile in triton.OTHERS}}.items():
            x = f"*{TRITON_NAMES[dtype]}"
            pointers = {"x": x, "weight": x, "scores": "*fp32", "codes": "*i32", "invalid": "*u1"}
            pointers |= {"seeds": "*i64", "step": "*i64", "position": "*i64", "temperature": "*fp32"}
            signature = pointers | dict.fromkeys(("M", "G", "K", "D", "stride_step", "stride_position"), "i32")
            constants = triton.constants(tile, dtype) | {"INTERPRET": False}
            aligned = ("x", "weight", "scores", "codes", "K", "D")
            size, launch = name + (" rows" if name in own else ""), (tile.warps, tile.stages)
            what = f"head and draw, {size} {TRITON_NAMES[dtype]}"
            needs = ("mma", "async")
            made.append(
                Variant(
                    what, triton_kernels.tiles_kernel, signature, constants, aligned, *launch, needs, fp_fusion=False
                )
            )
    signature = {"scores": "*fp32", "codes": "*i32", "out": "*i64"}
    signature |= dict.fromkeys(("tiles", "M", "G", "stride_out_b", "stride_out_g"), "i32")
    for tiles in sorted({8192 // tile.codes for tile in triton.TILES.values()}):
        name, settled = f"head and draw, {tiles} tiles", ("scores", "codes", "tiles")
        made.append(Variant(name, triton_kernels.settle_kernel, signature, {"TILES": tiles}, settled, 1, 3))
    return made


SPEC = Spec(
    op="draw_from_head",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    variants=variants,
    describe=triton.describe,
    backends=BACKENDS,
    baselines={"torch, then the draw's kernel": product_then_draw},
)

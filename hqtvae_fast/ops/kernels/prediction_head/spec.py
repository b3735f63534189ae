"""Real cases, inputs, cost and rule of agreement of the prediction head's step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.prediction_head import BACKENDS, PredictionHead, cuda, reference
from hqtvae_fast.ops.kernels.prediction_head.weights import BOTTOMS, LEVELS, BlockWeights, HeadWeights, LevelWeights
from hqtvae_fast.ops.kernels.sample_logits.noise import gumbel, random_words
from hqtvae_fast.ops.kernels.skinny_linear.reference import QUANTIZED, quantize
from hqtvae_fast.ops.spec import Case, Cost, Spec

HEAD_WIDTH = 64
STORED = (None, *QUANTIZED)


def _real(batch: int, quantized: int, suffix: str = "") -> Case:
    """``quantized``: 1 is int8, 2 fp8."""
    sizes = {"B": batch, "D": 1536, "L": 4, "K": 8192, "quantized": quantized}
    return Case(f"S, batch {batch}{suffix}", sizes, torch.bfloat16)


CASES = (
    *(_real(batch, 0) for batch in (1, 2, 4, 8, 16)),
    *(_real(batch, 1, ", int8") for batch in (1, 2, 4, 8, 16)),
    *(_real(batch, 2, ", fp8") for batch in (1, 16)),
)
SMALL_CASES = (
    Case("one image, bf16", {"B": 1, "D": 256, "L": 1, "K": 96}, torch.bfloat16),
    Case("biases, bf16", {"B": 3, "D": 256, "L": 2, "K": 90, "bias": 1}, torch.bfloat16),
    Case("other GELU, eight images, bf16", {"B": 8, "D": 256, "L": 2, "K": 300, "sigmoid": 1}, torch.bfloat16),
    Case("sixteen images, bf16", {"B": 16, "D": 256, "L": 2, "K": 128}, torch.bfloat16),
    Case("int8, biases, bf16", {"B": 2, "D": 512, "L": 1, "K": 90, "bias": 1, "quantized": 1}, torch.bfloat16),
    Case("int8, sixteen images, bf16", {"B": 16, "D": 512, "L": 1, "K": 40, "quantized": 1}, torch.bfloat16),
    Case("fp8, eight images, bf16", {"B": 8, "D": 512, "L": 1, "K": 64, "sigmoid": 1, "quantized": 2}, torch.bfloat16),
    Case("int8, fp32", {"B": 2, "D": 128, "L": 2, "K": 64, "bias": 1, "quantized": 1}),
    Case("fp32", {"B": 2, "D": 128, "L": 2, "K": 64, "bias": 1}),
)
ABSOLUTE = 1e-3
"""Of the largest logit: how far both computations may be off beyond twice torch's own error in the same dtype."""

Inputs = tuple[Any, ...]


def make_weights(case: Case, device: torch.device, seed: int) -> HeadWeights:
    """As spread as a trained model's, so that activations keep their size through the blocks. ``case["quantized"]``: 1
    is int8, 2 fp8."""
    D, K, generator = case["D"], case["K"], torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        values = scale * torch.randn(*shape, generator=generator, dtype=torch.float32) + offset
        return values.to(case.dtype).to(device)

    def bias(size: int) -> Tensor | None:
        return random(size, scale=0.1) if case.sizes.get("bias") else None

    def matrix(name: str, rows: int, inputs: int, scale: float) -> dict[str, Tensor | None]:
        values, to = random(rows, inputs, scale=scale * inputs**-0.5), STORED[case.sizes.get("quantized", 0)]
        stored, factor = (values, None) if to is None else quantize(values, to)
        return {name: stored, f"{name}_scale": factor}

    def block() -> BlockWeights:
        norms = {"norm1_weight": random(D, scale=0.1, offset=1.0), "norm1_bias": random(D, scale=0.1)}
        norms |= {"norm2_weight": random(D, scale=0.1, offset=1.0), "norm2_bias": random(D, scale=0.1)}
        sizes = {"qkv": (3 * D, D), "out": (D, D), "up": (4 * D, D), "down": (D, 4 * D)}
        parts: dict[str, Any] = {f"{name}_bias": bias(size[0]) for name, size in sizes.items()}
        for name, size in sizes.items():
            parts |= matrix(name, *size, 0.7)
        return BlockWeights(**norms, **parts)

    def level() -> LevelWeights:
        parts: dict[str, Any] = matrix("logits", K, D, 3.0)
        return LevelWeights(random(D, scale=0.1, offset=1.0), random(D, scale=0.1), **parts)

    blocks = tuple(block() for _ in range(case["L"]))
    levels = tuple(level() for _ in range(LEVELS))
    return HeadWeights(random(D), random(BOTTOMS, D), random(K, D), blocks, levels)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    B, K, generator = case["B"], case["K"], torch.Generator().manual_seed(seed + 1)
    gelu = "sigmoid" if case.sizes.get("sigmoid") else "exact"
    head = PredictionHead.of(make_weights(case, device, seed), case["D"] // HEAD_WIDTH, gelu)
    h = torch.randn(B, case["D"], generator=generator, dtype=torch.float32).to(case.dtype)
    tensors = (
        h,
        torch.zeros(B, 1 + BOTTOMS, dtype=torch.int64),
        torch.zeros((), dtype=torch.bool),
        torch.randint(-(2**62), 2**62, (B,), generator=generator, dtype=torch.int64),
        torch.tensor(5, dtype=torch.int64),
        torch.tensor([0.95, 1.1], dtype=torch.float32),
        torch.tensor([K, K], dtype=torch.int64),
        torch.ones(LEVELS, dtype=torch.float32),
    )
    return (*(tensor.to(device) for tensor in tensors), head, True)


def run(*inputs: Any, backend: str | None = None) -> Tensor:
    h, codes, invalid, seeds, step, temperature, top_k, top_p, head, draw_top = inputs
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "invalid": invalid, "draw_top": draw_top}
    return head(h, codes.clone(), seeds=seeds, step=step, backend=backend, **options)


def on_cpu(head: PredictionHead, dtype: torch.dtype) -> PredictionHead:
    """The same numbers, in another dtype but for quantized matrices and their scales."""
    tensors: list[Tensor | None] = []
    for name, x in head.weights.named().items():
        kept = x is None or name.endswith("_scale") or x.dtype in QUANTIZED.values()
        tensors.append(x if x is None else x.cpu() if kept else x.cpu().to(dtype))
    return PredictionHead.of(HeadWeights.of(tensors), head.num_heads, head.gelu)


def define(*inputs: Any) -> Tensor:
    copies: list[Any] = [x.cpu() if isinstance(x, Tensor) else x for x in inputs]
    head = on_cpu(copies[-2], copies[0].dtype)
    return run(*copies[:-2], head, copies[-1], backend="reference")


def logits_with_errors(codes: Tensor, inputs: Inputs) -> list[tuple[Tensor, float]]:
    """Of each level, given the top codes: float64 logits [B, G, K], and how far others may be off."""
    h, head = inputs[0].cpu(), inputs[-2]
    found = []
    for dtype in (torch.float64, h.dtype):
        weights = on_cpu(head, dtype).weights
        found.append(reference.logits(h.to(dtype), codes.cpu(), weights, head.num_heads, head.gelu))
    exact, plain = found
    errors = [2 * float((p.double() - e).abs().max()) + ABSOLUTE * float(e.abs().max()) for p, e in zip(plain, exact)]  # noqa: B905
    return list(zip(exact, errors, strict=True))


def check(got: Tensor, wanted: Tensor, inputs: Inputs) -> None:
    """Each code's score comes as near the best as logits may be off, for the top codes that were drawn; filters off."""
    assert got.shape == wanted.shape, f"expected {list(wanted.shape)}; got {list(got.shape)}"
    seeds, step, temperature = (inputs[index].cpu() for index in (3, 4, 5))
    for name, codes in (("drawn", got.cpu()), ("the definition's", wanted)):
        start = 0
        for level, (logits, error) in enumerate(logits_with_errors(codes, inputs)):
            _, G, K = logits.shape
            words = [random_words(seeds, int(step), start + g, K) for g in range(G)]
            scores = logits / temperature[level] + gumbel(torch.stack(words, dim=1))
            own = scores.gather(2, codes[:, start : start + G, None])[..., 0]
            behind = float((scores.amax(dim=2) - own).max())
            limit = 2 * error / float(temperature[level]) + 1e-5
            assert behind <= limit, f"{name}, level {level}: {behind:.2e} behind the best, more than {limit:.2e}"
            start += G


def cost(case: Case) -> Cost:
    """Weights once a pass, without the queries in the first; an fp32 scale a row of 8-bit ones; work of all rows."""
    B, D, L, K = (case[letter] for letter in "BDLK")
    first, second = L * 11 * D * D + K * D, L * 12 * D * D + K * D
    scales = 4 * (L * (8 + 9) * D + 2 * K)
    quantized = case.sizes.get("quantized", 0) > 0
    bytes_read = first + second + scales if quantized else case.dtype.itemsize * (first + second)
    return Cost(2 * B * (first + BOTTOMS * second), bytes_read)


def describe(*inputs: Any) -> Mapping[str, str]:
    stored = {"plain": "bf16"}.get(inputs[-2].weights.stored, inputs[-2].weights.stored)
    if not torch.cuda.is_available():
        slots = cuda.ring_slots(227 * 1024, stored)
        return {"persistent grid": f"a block a multiprocessor; {slots} slots of 4 KB on an H100"}
    blocks, slots = cuda.plan(inputs[0].device, stored)
    shared = cuda.shared_bytes(slots, stored)
    return {"persistent grid": f"{blocks} blocks, {slots} slots of 4 KB, {shared} bytes shared"}


SPEC = Spec(
    op="prediction_head",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    describe=describe,
    backends=BACKENDS,
)

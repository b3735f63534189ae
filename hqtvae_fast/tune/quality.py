"""What 8 bits cost a model: its predictions and its pictures beside those of fp32, and the variants that cost too much.

A variant that is right may still round more than a model bears: int8 products round their inputs, with bounds that no
float64 check can judge. So they are judged by the model itself, on what it draws in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from hqtvae_fast.engine import Executor
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.modes import inference
from hqtvae_fast.ops.kernels.int8_linear import native
from hqtvae_fast.plan import Plan
from hqtvae_fast.text import load_tokenizer
from hqtvae_fast.tune.whole import ModelName, any_rows, models_of

MOST_KL = 2e-3
"""Of int8: the mean over all positions, in nats."""
LEAST_PSNR = 40.0
"""Of int8: the mean over pictures, in dB."""
PROMPTS = ("tiger face, 3d", "red apple, flat", "rocket, shaded", "owl, 3d")  # as the demo model was trained
POSITIONS = 2560
"""Judged at least: by 640 of them the demo model's KL is 2.3e-3, by 2,560 1.6e-3."""
INPUTS_ROUNDED = "packed_linear native/int8"


def compare(exact: Tensor, got: Tensor) -> tuple[float, float]:
    """(share of positions with the same likeliest code, mean KL(exact || got) in nats) of logits [B, T, K]."""
    p, q = exact.double().log_softmax(dim=-1), got.double().log_softmax(dim=-1)
    same = (exact.argmax(dim=-1) == got.argmax(dim=-1)).double().mean()
    return float(same), float((p.exp() * (p - q)).sum(dim=-1).mean())


def mean_kl(exact: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The mean over the positions of all levels of KL(exact || got), in nats."""
    positions = [level.shape[1] for level in exact]
    kl = [compare(*pair)[1] for pair in zip(exact, got, strict=True)]
    return sum(each * count for each, count in zip(kl, positions, strict=True)) / sum(positions)


def repeated(prompts: Sequence[str], count: int) -> list[str]:
    return [prompts[index % len(prompts)] for index in range(count)]


@inference()
def unfit(name: ModelName, device: torch.device, positions: int = POSITIONS) -> dict[str, str]:
    """Of a model in int8: the variants, as "op name", that take its predictions further than :data:`MOST_KL` from what
    it is in fp32 (of a file in int8: from its numbers in fp32), teacher forced on codes that it draws, and the reason.

    Empty where nothing rounds inputs (a GPU, other weights), and of random weights, which predict nothing.
    """
    if name.preset is not None or device.type != "cpu" or not native.instructions():
        return {}
    rounded = name.open(device)
    if rounded.quantization != "int8":
        return {}
    exact = replace(name, dtype="fp32", quantization=None).open(device)
    models = models_of(exact)
    images = ceil(positions / sum(side * side for side in exact.vae.config.level_sides))
    rows = any_rows([model.config for model in models], 0, images, device)
    if models[0].config.condition == "text":
        tokenizer = load_tokenizer(exact)
        if tokenizer is not None:
            rows = rows._replace(condition=tokenizer(repeated(PROMPTS, images)))
    executor, invalid = Executor(models, exact.vae, device, Plan()), torch.zeros((), dtype=torch.bool, device=device)
    codes = executor.draw(*rows, invalid, lambda: None)
    kl = max(_kl(*pair, codes, rows.condition) for pair in zip(models, models_of(rounded), strict=True))
    if kl <= MOST_KL:
        return {}
    return {INPUTS_ROUNDED: f"moves predictions by a KL of {kl:.1e} nats; expected at most {MOST_KL:.0e}"}


def _kl(exact: HQTransformer, rounded: HQTransformer, codes: Sequence[Tensor], condition: Tensor | None) -> float:
    if exact.config.condition == "codes":  # a second model, whose prefix is the top map
        condition, codes = codes[0].flatten(1), codes[1:]
    known = list(codes[: exact.config.num_levels])
    return mean_kl(exact(known, condition).levels, rounded(known, condition).levels)

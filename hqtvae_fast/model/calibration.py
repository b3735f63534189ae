"""To what span of numbers each of the decoder's convolutions reads: what 8-bit maps need to know beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.model.convolution import Remade
from hqtvae_fast.model.hqvae import HQVAE
from hqtvae_fast.ops.kernels.round_map.reference import LEVELS

BINS = 8192
FACTORS = 64
SMALLEST = 0.2
"""Of a span, to which its search goes down."""


def roundable(vae: HQVAE) -> Iterator[tuple[str, Remade]]:
    """The convolutions that may be computed in 8 bits, by their names in the VAE: all 3x3 ones of the decoder but the
    first and the last."""
    for name, module in vae.decoder.named_modules(prefix="decoder"):
        if isinstance(module, Remade) and module is not vae.decoder.conv_in:
            yield name, module


@torch.no_grad()
def calibrate(vae: HQVAE, decode: Callable[[], Any]) -> None:
    """Set the spans, so that rounding to 8 bits and cutting off costs the least squared error over the maps that
    ``decode`` computes, which is called twice."""
    layers = dict(roundable(vae))
    ends: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}

    def widen(name: str, x: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(x))
        own = ends.setdefault(name, torch.zeros(2, dtype=torch.float32))
        own[0], own[1] = min(float(own[0]), low), max(float(own[1]), high)

    def count(name: str, x: Tensor) -> None:
        low, high = ends[name].tolist()
        found = torch.histc(x.float(), BINS, low, high).double().cpu()
        counts[name] = counts.get(name, 0.0) + found

    for note in (widen, count):
        hooks = [
            layer.register_forward_pre_hook(lambda module, inputs, name=name, note=note: note(name, inputs[0]))
            for name, layer in layers.items()
        ]
        try:
            decode()
        finally:
            for hook in hooks:
                hook.remove()
    for name, layer in layers.items():
        layer.span = best_span(counts[name], *ends[name].tolist())


def best_span(counts: Tensor, low: float, high: float) -> Tensor:
    """fp32 [2], of numbers counted in even bins from ``low`` <= 0 to ``high`` >= 0: one end after the other is moved
    in, to where the squared error is least."""
    width = (high - low) / len(counts)
    values = low + width * (torch.arange(len(counts), dtype=torch.float64) + 0.5)
    for end in range(2):
        tried = [1 - (1 - SMALLEST) * step / FACTORS for step in range(FACTORS)]
        spans = [(factor * low, high) if end == 0 else (low, factor * high) for factor in tried]
        low, high = min(spans, key=lambda span: _error(values, counts, *span))
    return torch.tensor([low, high], dtype=torch.float32)


def _error(values: Tensor, counts: Tensor, low: float, high: float) -> float:
    scale = max(high - low, 1e-30) / LEVELS
    zero = round(-low / scale)
    kept = ((values / scale).round() + zero).clamp_(0, LEVELS) - zero
    return float((counts * (values - scale * kept).square()).sum())

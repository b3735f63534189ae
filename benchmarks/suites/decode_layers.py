"""Where decoding spends its time: our decoder's layers, one by one, by kind and shape.

Each layer stands between two marks on the device's clock, so that an interval holds what the layer runs and, for layers
so small that the host issues them more slowly than the GPU runs them, the waiting: take batches of several images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measuring.figures import plain
from benchmarks.measuring.timing import Marks
from hqtvae_fast.engine.coding import chunk_size
from hqtvae_fast.hardware import Device
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.autoencoder import AttnBlock, NormSwish, Upsample


@dataclass(frozen=True)
class Layer:
    """All layers of one kind and shape in one decode: how many, their seconds and their FLOPs (0: none counted)."""

    name: str
    count: int
    seconds: float
    flops: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def decode_layers(vae: HQVAE, codes: Sequence[Tensor], device: torch.device) -> list[Layer]:
    """The slowest first, for the images of one chunk; the rest of the decode (tables, pixels) last."""
    chunk = min(len(codes[0]), chunk_size(vae, device))
    part = [level[:chunk] for level in codes]
    vae.decode(part)
    watch = _Watch(device)
    total = Marks(device)
    with watch.over(vae.decoder):
        total.mark()
        vae.decode(part)
        total.mark()
    (seconds,) = total.intervals()
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for name, marks, flops in watch.seen:
        found[name].append((marks.intervals()[0], flops))
    layers = [
        Layer(name, len(runs), sum(time for time, _ in runs), sum(flops for _, flops in runs))
        for name, runs in found.items()
    ]
    layers.sort(key=lambda layer: -layer.seconds)
    rest = max(0.0, seconds - sum(layer.seconds for layer in layers))
    return [*layers, Layer(f"everything else ({chunk} images in all)", 1, rest, 0)]


class _Watch:
    """``seen``: name, marks before and after, and FLOPs of each call of a layer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seen: list[tuple[str, Marks, int]] = []

    @contextmanager
    def over(self, decoder: nn.Module) -> Iterator[None]:
        hooks = [hook for layer in _layers(decoder) for hook in self._hooks(layer)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, layer: nn.Module) -> Iterator[Any]:
        started: list[tuple[Marks, tuple[int, ...]]] = []

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            marks = Marks(self.device)
            marks.mark()
            started.append((marks, tuple(inputs[0].shape)))

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            marks, shape = started.pop()
            marks.mark()
            name, flops = describe_layer(module, shape)
            self.seen.append((name, marks, flops))

        yield layer.register_forward_pre_hook(before)
        yield layer.register_forward_hook(after)


def _layers(decoder: nn.Module) -> Iterator[nn.Module]:
    """Those that compute, none inside another."""
    for child in decoder.children():
        if isinstance(child, (nn.Conv2d, Upsample, NormSwish, AttnBlock)):
            yield child
        else:
            yield from _layers(child)


def describe_layer(layer: nn.Module, shape: tuple[int, ...]) -> tuple[str, int]:
    """Its kind and shape in words, and its FLOPs on an input [B, C, H, W], as computed: folded upsampling."""
    B, C, H, W = shape
    at = f"{H}x{W}x{C}"
    if isinstance(layer, Upsample):
        taps = 4 if layer.folded is not None else 9
        return f"upsampling, {at}", 2 * B * 4 * H * W * C * C * taps
    if isinstance(layer, AttnBlock):
        return f"attention, {at}", B * H * W * (8 * C * C + 4 * H * W * C)
    if isinstance(layer, nn.Conv2d):
        N, k = layer.out_channels, layer.kernel_size[0]
        return f"{k}x{k} convolution, {at} to {N}", 2 * B * H * W * N * C * k * k
    return f"group norm and SiLU, {at}", 0


def to_table(layers: Sequence[Layer], peaks: Device) -> Table:
    table = Table(title="Layers of ours, eager", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("layers", "ms", "share", "TFLOP/s", "of the GEMM"):
        table.add_column(column, justify="right")
    total = sum(layer.seconds for layer in layers)
    for layer in layers:
        cells = [str(layer.count), plain(layer.seconds * 1e3), f"{layer.seconds / total:.0%}"]
        if layer.flops:
            rate = layer.flops / layer.seconds
            cells += [plain(rate / 1e12, 3), f"{rate / peaks.flops:.0%}"]
        table.add_row(layer.name, *cells)
    return table

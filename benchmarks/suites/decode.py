"""``python -m benchmarks.suites.generate --decode-only``: decoding alone, beside the same weights in plain torch.

Entrants take turns. Everywhere: ours (:func:`hqtvae_fast.engine.decode_codes`), the plain decoder in fp32 one image at
a time, as the released code decodes, and the plain decoder in fp32 with the whole batch at once. On a GPU also ours as
a captured graph, and in ours' dtype the plain decoder as it is, in channels-last memory, and compiled by torch. Then a
table of the decoder's layers (:mod:`benchmarks.suites.decode_layers`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.entrants.ours import BENCHMARK_PRESETS, SEED
from benchmarks.entrants.plain_decoder import PlainDecoder
from benchmarks.measuring.clocks import Watch, unfit_by_load
from benchmarks.measuring.environment import OtherWork, PeakMemory, describe, peaks_and_load
from benchmarks.measuring.figures import plain
from benchmarks.measuring.schema import Results, Row, write
from benchmarks.measuring.timing import Marks, take_turns
from benchmarks.suites.decode_layers import Layer, decode_layers
from benchmarks.suites.decode_layers import to_table as layers_table
from hqtvae_fast.checkpoint import load
from hqtvae_fast.config import ConfigError, VAEConfig
from hqtvae_fast.engine import decode_codes
from hqtvae_fast.engine.coding import DecodeReplay
from hqtvae_fast.hardware import Device, default_dtype
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.cost import decode_flops

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of pixels in [0, 1] against the plain decoder in fp32: an entrant that decodes something else is not timed."""
COMPILE_MODE = "max-autotune"
TABLE_WIDTH = 120
WARM_UPS = 3  # of a whole batch, on a GPU: compilers compile, then record a graph, then replay it
Decode = Callable[[Sequence[Tensor]], Tensor]


@dataclass
class Entrant:
    """``run`` gives images [B, 3, R, R] in [0, 1]; ``flops`` are those of one image; ``seconds`` those of each run."""

    name: str
    precision: str
    run: Decode
    flops: int
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    """Bytes that torch held at most beyond what it held before; on a GPU alone."""


def decode_only(
    preset: str, checkpoint: Path | None, device: torch.device, batch: int, repeats: int, dtype: str, json: Path | None
) -> None:
    """Time decoding ``batch`` images, print the tables and write ``json``."""
    vae = _open_vae(preset, checkpoint)
    peaks, load = peaks_and_load(device)
    facts = {**describe(device), **load}
    codes = _random_codes(vae.config, batch, device)
    everything, picked = device.type == "cuda", default_dtype(device) if dtype == "auto" else DTYPES[dtype]
    entrants = make_entrants(vae, device, picked, batch, everything=everything)
    check_alike(entrants, codes)
    if everything:
        warm_up(entrants, codes, device)
    clocks, unfit = time_in_turns(entrants, codes, device, repeats)
    layers = decode_layers(vae, codes, device)
    workload = str(checkpoint or preset)
    console = Console(width=TABLE_WIDTH)
    console.print(to_table(workload, entrants, batch, facts, peaks, unfit))
    console.print(layers_table(layers, peaks))
    if json is not None:
        write(to_results(workload, entrants, batch, facts, peaks, layers, clocks, unfit), json)


def make_entrants(
    vae: HQVAE,
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    *,
    everything: bool,
    compile_backend: str = "inductor",
) -> list[Entrant]:
    """Ours first, the one that all are held to last; the plain ones on weights of their own. ``everything``: all that a
    GPU is measured with."""
    plain = copy.deepcopy(vae).float().to(device).eval()
    single = PlainDecoder(plain)
    ours = vae.float().to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    ours = ours.fold().set_decoder_dtype(dtype)
    folded, unfolded = (decode_flops(vae.config, fold_upsampling=fold) for fold in (True, False))
    name = next(name for name, value in DTYPES.items() if value is dtype)
    entrants = [Entrant("hqtvae_fast", name, lambda codes: decode_codes(ours, codes), folded)]
    if everything:
        entrants.append(Entrant("hqtvae_fast, captured", name, _captured(ours, batch), folded))
        cast = copy.deepcopy(plain).set_decoder_dtype(dtype)
        spread = copy.deepcopy(cast).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = PlainDecoder(spread, channels_last=True)
        compiled = torch.compile(last.pixels, dynamic=False, **_compile_options(compile_backend))
        entrants += [
            Entrant("plain torch", name, _in_unit_range(PlainDecoder(cast)), unfolded),
            Entrant("plain torch, channels-last", name, _in_unit_range(last), unfolded),
            Entrant("torch.compile, channels-last", name, _in_unit_range(compiled), unfolded),
        ]
    return [
        *entrants,
        Entrant("plain torch, one image at a time", "fp32", _one_by_one(_in_unit_range(single)), unfolded),
        Entrant("plain torch, the batch at once", "fp32", _in_unit_range(single), unfolded),
    ]


def _compile_options(backend: str) -> dict[str, Any]:
    return {"mode": COMPILE_MODE} if backend == "inductor" else {"backend": backend}


def _captured(vae: HQVAE, batch: int) -> Decode:
    """Captured for each number of images when it first comes."""
    replays: dict[int, DecodeReplay] = {}

    def run(codes: Sequence[Tensor]) -> Tensor:
        count = len(codes[0])
        if count not in replays:
            replays[count] = DecodeReplay(vae, count)
        return replays[count](codes)

    return run


def _in_unit_range(decode: Decode) -> Decode:
    @torch.no_grad()
    def run(codes: Sequence[Tensor]) -> Tensor:
        return (decode(codes).float() * 0.5 + 0.5).clamp(0, 1)

    return run


def _one_by_one(decode: Decode) -> Decode:
    def run(codes: Sequence[Tensor]) -> Tensor:
        return torch.cat([decode([level[i : i + 1] for level in codes]) for i in range(len(codes[0]))])

    return run


def check_alike(entrants: Sequence[Entrant], codes: Sequence[Tensor]) -> None:
    """Each entrant's first image against the last one's, which also warms up: RuntimeError where they differ."""
    first = [level[:1] for level in codes]
    wanted = entrants[-1].run(first)
    for entrant in entrants:
        error = float((entrant.run(first) - wanted).abs().max())
        limit = TOLERANCE[DTYPES[entrant.precision]]
        if not error <= limit:
            raise RuntimeError(f"{entrant.name}: expected pixels within {limit:g} of plain fp32; off by {error:.2g}")


def warm_up(entrants: Sequence[Entrant], codes: Sequence[Tensor], device: torch.device) -> None:
    """Whole batches, and the peak memory of the last one."""
    for entrant in entrants:
        for _ in range(WARM_UPS - 1):
            entrant.run(codes)
        torch.cuda.synchronize(device)
        meter = PeakMemory(device)
        entrant.run(codes)
        torch.cuda.synchronize(device)
        entrant.peak = meter.read()


def time_in_turns(
    entrants: Sequence[Entrant], codes: Sequence[Tensor], device: torch.device, repeats: int
) -> tuple[dict[str, Any] | None, str | None]:
    """Fill in ``seconds``. What was seen of a GPU's clocks, and why the figures must not be quoted, if so."""
    marks = Marks(device)
    order = list(take_turns([repeats] * len(entrants)))
    with OtherWork() as others, Watch(device) as watch:
        marks.mark()
        for index in order:
            entrants[index].run(codes)
            marks.mark()
        intervals = marks.intervals()
    for index, seconds in zip(order, intervals, strict=True):
        entrants[index].seconds.append(seconds)
    busy = None if device.type == "cuda" else others.cpus
    return watch.summary(), watch.unfit() or unfit_by_load(busy)


def to_table(
    workload: str, entrants: Sequence[Entrant], batch: int, facts: dict[str, Any], peaks: Device, unfit: str | None
) -> Table:
    caption = (
        f"{facts['device']}, {facts['cpus']} CPUs, {facts['threads']} threads; torch {facts['torch']};"
        f" revision {facts['git_revision'] or 'unknown'}; {facts['date']}; GEMM in the same run:"
        f" {peaks.flops / 1e12:,.2f} TFLOP/s in {str(peaks.dtype).removeprefix('torch.')}"
    )
    if unfit is not None:
        caption += f"; unfit to quote: {unfit}"
    title = f"Decoding {batch} images, {workload}"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("dtype", "ms an image", "least", "TFLOP/s", "of the GEMM", "peak memory, GiB", "times ours"):
        table.add_column(column, justify="right")
    for entrant in entrants:
        middle = median(entrant.seconds)
        rate = entrant.flops * batch / middle
        cells = (plain(middle / batch * 1e3), plain(min(entrant.seconds) / batch * 1e3), plain(rate / 1e12, 3))
        share = f"{rate / peaks.flops:.0%}"
        peak = "" if entrant.peak is None else f"{entrant.peak / 2**30:,.2f}"
        ratio = f"{middle / median(entrants[0].seconds):.2f}x"
        table.add_row(entrant.name, entrant.precision, *cells, share, peak, ratio)
    return table


def to_results(
    workload: str,
    entrants: Sequence[Entrant],
    batch: int,
    facts: dict[str, Any],
    peaks: Device,
    layers: Sequence[Layer],
    clocks: dict[str, Any] | None,
    unfit: str | None,
) -> Results:
    rows = []
    for entrant in entrants:
        work = {"images": batch, "flops": entrant.flops * batch, "dtype": entrant.precision}
        work |= {"peak_memory": entrant.peak}
        ours = entrant.name.startswith("hqtvae_fast")
        samples = (tuple(entrant.seconds),)
        name = f"{workload}, batch {batch}: decode"
        rows.append(Row(name, entrant.name, samples, ours=ours, work=work, clocks=clocks, unfit=unfit))
    details = {"gemm_flops": peaks.flops, "layers": [layer.to_dict() for layer in layers]}
    return Results("decode", facts, tuple(rows), details)


def _open_vae(preset: str, checkpoint: Path | None) -> HQVAE:
    if checkpoint is not None:
        return load(checkpoint).vae
    if preset not in BENCHMARK_PRESETS:
        raise ConfigError(f"preset: expected one of {', '.join(BENCHMARK_PRESETS)}; got {preset!r}")
    torch.manual_seed(SEED)
    return HQVAE(BENCHMARK_PRESETS[preset].vae)


def _random_codes(config: VAEConfig, batch: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    shapes = zip(config.codebook_sizes, config.level_sides, strict=True)
    return [torch.randint(size, (batch, side, side), generator=generator).to(device) for size, side in shapes]

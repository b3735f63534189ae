"""``python -m benchmarks.generate --decode-only``: decoding alone, beside the same weights in plain torch.

Three entrants take turns: ours (:func:`decode_codes`), the plain decoder in fp32 one image at a time, as the released
code decodes, and the plain decoder in fp32 with the whole batch at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.environment import cpu_seconds_elsewhere, describe
from benchmarks.ours import BENCHMARK_PRESETS, SEED
from benchmarks.plain_decoder import PlainDecoder
from benchmarks.timing import Marks, take_turns
from hqtvae_fast.checkpoint import load
from hqtvae_fast.config import ConfigError, VAEConfig
from hqtvae_fast.engine import decode_codes
from hqtvae_fast.hardware import default_dtype
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.cost import decode_flops

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of pixels in [0, 1] against the plain decoder in fp32: an entrant that decodes something else is not timed."""


@dataclass
class Entrant:
    """``run`` gives images [B, 3, R, R] in [0, 1]; ``flops`` are those of one image; ``seconds`` those of each run."""

    name: str
    precision: str
    run: Callable[[Sequence[Tensor]], Tensor]
    flops: int
    seconds: list[float]


def decode_only(
    preset: str, checkpoint: Path | None, device: torch.device, batch: int, repeats: int, dtype: str, json: Path | None
) -> None:
    """Time decoding ``batch`` images, print a table and write ``json``."""
    vae = _open_vae(preset, checkpoint)
    facts = describe(device)
    entrants = make_entrants(vae, device, default_dtype(device) if dtype == "auto" else DTYPES[dtype])
    codes = _random_codes(vae.config, batch, device)
    check_alike(entrants, codes)
    elsewhere, marks = cpu_seconds_elsewhere(), Marks(device)
    marks.mark()
    order = list(take_turns([repeats] * len(entrants)))
    for index in order:
        entrants[index].run(codes)
        marks.mark()
    intervals, after = marks.intervals(), cpu_seconds_elsewhere()
    for index, seconds in zip(order, intervals, strict=True):
        entrants[index].seconds.append(seconds)
    busy = None if elsewhere is None or after is None else (after - elsewhere) / sum(intervals)
    Console().print(to_table(str(checkpoint or preset), entrants, batch, facts, busy))
    if json is not None:
        document = to_document(str(checkpoint or preset), entrants, batch, facts, busy)
        json.write_text(dumps(document, indent=1) + "\n")


def make_entrants(vae: HQVAE, device: torch.device, dtype: torch.dtype) -> list[Entrant]:
    """Ours first; the plain ones in fp32, on weights of their own in NCHW memory."""
    plain = PlainDecoder(copy.deepcopy(vae).float().to(device).eval())
    ours = vae.float().to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    ours = ours.fold().set_decoder_dtype(dtype)

    def whole(codes: Sequence[Tensor]) -> Tensor:
        return (plain(codes) * 0.5 + 0.5).clamp(0, 1)

    def one_by_one(codes: Sequence[Tensor]) -> Tensor:
        return torch.cat([whole([level[i : i + 1] for level in codes]) for i in range(len(codes[0]))])

    folded, unfolded = (decode_flops(vae.config, fold_upsampling=fold) for fold in (True, False))
    name = next(name for name, value in DTYPES.items() if value is dtype)
    return [
        Entrant("hqtvae_fast", name, lambda codes: decode_codes(ours, codes), folded, []),
        Entrant("plain torch, one image at a time", "fp32", one_by_one, unfolded, []),
        Entrant("plain torch, the batch at once", "fp32", whole, unfolded, []),
    ]


def check_alike(entrants: Sequence[Entrant], codes: Sequence[Tensor]) -> None:
    """Each entrant's first image against the last one's, which also warms up: RuntimeError where they differ."""
    first = [level[:1] for level in codes]
    wanted = entrants[-1].run(first)
    for entrant in entrants:
        error = float((entrant.run(first) - wanted).abs().max())
        limit = TOLERANCE[DTYPES[entrant.precision]]
        if not error <= limit:
            raise RuntimeError(f"{entrant.name}: expected pixels within {limit:g} of plain fp32; off by {error:.2g}")


def to_table(
    workload: str, entrants: Sequence[Entrant], batch: int, facts: dict[str, Any], busy: float | None
) -> Table:
    elsewhere = "" if busy is None else f", {busy:.1f} CPUs busy elsewhere meanwhile"
    caption = (
        f"{facts['device']}, {facts['cpus']} CPUs, {facts['threads']} threads{elsewhere}; torch {facts['torch']};"
        f" revision {facts['git_revision'] or 'unknown'}; {facts['date']}"
    )
    title = f"Decoding {batch} images, {workload}"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("dtype", "ms an image", "least", "GFLOP/s", "times ours"):
        table.add_column(column, justify="right")
    for entrant in entrants:
        middle = median(entrant.seconds)
        cells = (f"{middle / batch * 1e3:,.1f}", f"{min(entrant.seconds) / batch * 1e3:,.1f}")
        rate = f"{entrant.flops * batch / middle / 1e9:,.0f}"
        ratio = f"{middle / median(entrants[0].seconds):.2f}x"
        table.add_row(entrant.name, entrant.precision, *cells, rate, ratio)
    return table


def to_document(
    workload: str, entrants: Sequence[Entrant], batch: int, facts: dict[str, Any], busy: float | None
) -> dict[str, Any]:
    rows = [
        {"name": each.name, "dtype": each.precision, "seconds": each.seconds, "flops_an_image": each.flops}
        for each in entrants
    ]
    document = {"benchmark": "decode", "model": workload, "batch": batch, "environment": facts, "entrants": rows}
    return document | {"cpus_busy_elsewhere": busy}


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

"""The sections of ``hqtvae info``."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
from importlib.metadata import version
from typing import Any

import torch
import typer
from rich.text import Text

from hqtvae_fast import _cuda
from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.checkpoint_config import describe
from hqtvae_fast.classes import Classes
from hqtvae_fast.cli.output import facts, show, table, waiting
from hqtvae_fast.config import HQTVAEConfig, to_dict
from hqtvae_fast.engine.batches import decoding_memory
from hqtvae_fast.engine.options import PRECISIONS
from hqtvae_fast.hardware import Device, default_dtype, measure_this_machine, published
from hqtvae_fast.model import cost
from hqtvae_fast.ops import cpu_library
from hqtvae_fast.ops.kernels.int8_linear.native import INSTRUCTIONS, instructions

PUBLISHED = ("A100-80GB", "H100")
LISTED = 40  # names of classes
QUIET, TRIES = 0.5, 3  # a load above which a CPU is measured so many times


def show_machine() -> None:
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    rows = {
        "hqtvae_fast": version("hqtvae_fast"),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "triton": version("triton") if importlib.util.find_spec("triton") else "none",
        "Python": platform.python_version(),
        "device": device,
        "compiled kernels for CPUs": _cpu_kernels(),
        "CUDA kernels of csrc": _cuda.origin(),
        "computes in": _name(default_dtype("cuda" if cuda else "cpu")),
    }
    show(facts("This machine", rows))


def _cpu_kernels() -> str:
    missing = cpu_library.load()[1]
    if missing:
        return f"none ({missing})"
    eight, no_bf16 = INSTRUCTIONS.get(instructions()), cpu_library.why_not_bf16()
    found = ["random words", *([f"int8 products ({eight})"] if eight else [])]
    found += [] if no_bf16 else ["bf16 products and attention"]
    return ", ".join(found) + (f"; {no_bf16}" if no_bf16 else "")


def show_summary(name: str, config: HQTVAEConfig, opened: checkpoints.Checkpoint | None) -> None:
    """One line about the model, before the sections."""
    said = f"{name}: {describe(config, cost.sizes(config))}"
    if opened is not None:
        tensors = [value for part in opened.modules().values() for value in part.state_dict().values()]
        dtypes = ", ".join(sorted({_name(value.dtype) for value in tensors}))
        said += f"; {_si(sum(value.nbytes for value in tensors), 'G')}B in {dtypes}"
    typer.echo(f"{said}\n")


def show_stored(opened: checkpoints.Checkpoint) -> None:
    dtypes = {
        name: {_name(value.dtype) for value in part.state_dict().values()} for name, part in opened.modules().items()
    }
    show(facts("Weights are stored in", {name: ", ".join(sorted(found)) for name, found in dtypes.items()}))


def show_classes(classes: Classes) -> None:
    """Their names, the first of them if they are many; nothing of classes without names."""
    if not classes.names:
        return
    rows = {str(label): classes.caption(label) for label in classes.trained[:LISTED]}
    if len(classes.trained) > LISTED:
        rows[f"{len(classes.trained) - LISTED:,} more"] = "id2label of config.json"
    if untrained := classes.count - len(classes.trained):
        rows[f"{untrained:,} others"] = "without training pictures"
    show(facts("Classes", rows))


def show_costs(config: HQTVAEConfig, batches: list[int], dtype: str, measure: bool) -> None:
    """Configuration, parameters, work, memory and the least times of a model."""
    held_in = PRECISIONS[dtype].dtype
    _show_config(config)
    _show_parameters(config)
    _show_cost(config)
    _show_memory(config, batches, held_in)
    _show_floors(config, batches, held_in, measure)


def _show_config(config: HQTVAEConfig) -> None:
    parts = to_dict(dataclasses.replace(config, id2label=())).items()
    show(facts("Configuration", {name: str(value) for part, values in parts for name, value in _flat(part, values)}))


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """Leaves of nested dictionaries, under dotted names."""
    if not isinstance(value, dict):
        return [] if value is None else [(name, value)]
    return [leaf for key, inner in value.items() for leaf in _flat(f"{name}.{key}", inner)]


def _show_parameters(config: HQTVAEConfig) -> None:
    values, sizes = cost.parameters(config), cost.sizes(config)
    shown = table("Parameters", "component", "values")
    for part, size in sizes.items():
        for name, number in values.items():
            if name.startswith(f"{part}."):
                buffer = " (buffers, not counted)" if name == "vae.codebooks" else ""
                shown.add_row(f"{name}{buffer}", _si(number, "M"))
        shown.add_row(Text(f"{part}, together", "bold"), Text(_si(size, "M"), "bold"))
        shown.add_section()
    show(shown)


def _show_cost(config: HQTVAEConfig) -> None:
    image, folded = cost.image_cost(config), cost.decode_flops(config.vae, fold_upsampling=True)
    rows = {
        "encode": f"{_si(cost.encode_flops(config.vae), 'G')}FLOP",
        "decode": f"{_si(image.decode, 'G')}FLOP",
        "decode, with nearest-2x folded into its convolution": f"{_si(folded, 'G')}FLOP",
    }
    if image.steps:
        last = image.steps[-1]
        rows["draw all codes"] = f"{_si(image.draw, 'G')}FLOP"
        rows["steps"] = f"{len(image.steps):,}"
        rows["weights read in a step, whatever the batch"] = f"{_si(last.weights, 'M')} values"
        rows["weights read in all steps"] = f"{_si(image.weights_read, 'G')} values"
        rows["keys and values moved in the last step"] = f"{_si(last.cache, 'M')} values"
        rows["keys and values moved in all steps"] = f"{_si(image.cache_moved, 'M')} values"
    show(facts("Work, for one image", rows))


def _show_memory(config: HQTVAEConfig, batches: list[int], dtype: torch.dtype) -> None:
    columns = ("weights", "cache", "codes", "together", "decoding the batch at once")
    shown = table(f"Memory in {_name(dtype)}", "batch", *columns)
    for batch in batches:
        held = cost.memory(config, batch, dtype)
        decoding = decoding_memory(config.vae, dtype).total(batch)
        cells = (held.weights, held.cache, held.codes, held.total, decoding)
        shown.add_row(str(batch), *(f"{_si(value, 'G')}B" for value in cells))
    show(shown)
    typer.echo(
        "The last column is an estimate of activations: where they do not fit, fewer images are decoded at once.\n"
    )


def _show_floors(config: HQTVAEConfig, batches: list[int], dtype: torch.dtype, measure: bool) -> None:
    image = cost.image_cost(config)
    load, devices = 0.0, [published(name) for name in PUBLISHED]
    if measure:
        with waiting("Measuring this machine"):
            load, measured = _measure()
        devices.append(measured)
    columns = ("batch", "draw, ms", "decode, ms", "images/s at most", "for an endless batch")
    shown = table(f"Time floors, with weights, caches and pixels in {_name(dtype)}", "device", *columns)
    for device in devices:
        for batch in batches:
            floor = image.floor(batch, device, dtype)
            cells = (floor.draw * 1e3, floor.decode * 1e3, floor.images_per_second, image.roof(device))
            shown.add_row(Text(_describe(device)), str(batch), *(f"{value:,.1f}" for value in cells))
        shown.add_section()
    show(shown)
    typer.echo(
        "A step takes its arithmetic or its memory traffic, whichever is slower; decoding follows drawing. Devices are"
        " given as\nthey compute in the dtype named; published peaks are dense and at boost clock."
    )
    if load > QUIET:
        typer.echo(
            f"This machine was busy while it was measured: a load of {load:.1f} on {os.cpu_count()} cores, best of"
            f" {TRIES} measurements.\nAn idle machine may do better."
        )


def _measure() -> tuple[float, Device]:
    """The load of others, which tells on a CPU alone, and this machine's peaks; the best of several if there is any."""
    load = 0.0 if torch.cuda.is_available() else os.getloadavg()[0]
    tries = [measure_this_machine() for _ in range(TRIES if load > QUIET else 1)]
    flops, bandwidth = max(device.flops for device in tries), max(device.bandwidth for device in tries)
    return load, dataclasses.replace(tries[0], flops=flops, bandwidth=bandwidth)


def _describe(device: Device) -> str:
    return f"{device.name}: {_si(device.flops)}FLOP/s in {_name(device.dtype)}, {_si(device.bandwidth)}B/s"


def _si(value: float, largest: str = "T") -> str:
    """``1234.5 M``: one decimal, with a prefix up to ``largest``."""
    scales = (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3))
    allowed = scales[[prefix for prefix, _ in scales].index(largest) :]
    prefix, scale = next(((prefix, scale) for prefix, scale in allowed if value >= scale), ("", 1))
    return f"{value / scale:,.{1 if prefix else 0}f} {prefix}"


def _name(dtype: torch.dtype) -> str:
    return next((name for name, value in PRECISIONS.items() if value.dtype is dtype), str(dtype).removeprefix("torch."))

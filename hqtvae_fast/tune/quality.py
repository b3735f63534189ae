"""What 8 bits cost a model: its predictions and its pictures beside those of fp32, and the variants that cost too much.

A variant that is right may still round more than a model bears: int8 products round their inputs, with bounds that no
float64 check can judge. So they are judged by the model itself, on what it draws in fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hqtvae_fast.checkpoint import Checkpoint, spans_of
from hqtvae_fast.engine import Executor, decode_codes
from hqtvae_fast.engine.options import read_precision
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.autoencoder import Upsample
from hqtvae_fast.model.calibration import calibrate, roundable
from hqtvae_fast.model.convolution import Remade
from hqtvae_fast.modes import inference
from hqtvae_fast.ops.kernels.conv3x3 import EIGHT_BITS, INT8, QuantizedConv, has_int8
from hqtvae_fast.ops.kernels.int8_linear import native
from hqtvae_fast.pictures.images import psnr
from hqtvae_fast.plan import Plan, recording, using
from hqtvae_fast.text import load_tokenizer
from hqtvae_fast.tune.whole import ModelName, any_rows, models_of

MOST_KL = 2e-3
"""Of int8: the mean over all positions, in nats."""
LEAST_PSNR = 40.0
"""Of int8 and fp8: the mean over pictures, in dB."""
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


class Drawn(NamedTuple):
    """Codes [B, h, w] of all levels that a checkpoint draws by itself, and by what."""

    codes: tuple[Tensor, ...]
    condition: Tensor | None


@inference()
def draw(made: Checkpoint, device: torch.device, positions: int = POSITIONS) -> Drawn:
    """At least so many positions of drawings: of classes in turn, or of :data:`PROMPTS`, unfiltered."""
    models = models_of(made)
    images = ceil(positions / sum(side * side for side in made.vae.config.level_sides))
    rows = any_rows([model.config for model in models], 0, images, device)
    if models[0].config.condition == "text":
        tokenizer = load_tokenizer(made)
        if tokenizer is not None:
            rows = rows._replace(condition=tokenizer(repeated(PROMPTS, images)).to(device))
    executor, invalid = Executor(models, made.vae, device, Plan()), torch.zeros((), dtype=torch.bool, device=device)
    return Drawn(tuple(executor.draw(*rows, invalid, lambda: None)), rows.condition)


def unfit(name: ModelName, device: torch.device, positions: int = POSITIONS) -> dict[str, str]:
    """Of a model in 8 bits: the variants, as "op name", that take its predictions or its pictures further than
    :data:`MOST_KL` and :data:`LEAST_PSNR` from what it is in fp32 (of a file in int8: from its numbers in fp32), on
    what it draws, and the reason; and of a calibrated decoder those in a form that the model is not in.

    Judged on the CPU, whose 8 bits are a GPU's: there no variant is run that has not been proven. Empty of random
    weights, which predict nothing, and where nothing but weights can be rounded.
    """
    if name.preset is not None or (device.type != "cpu" and not spans_of(str(name.checkpoint))):
        return {}
    rounded = _on_the_cpu(name).open(CPU)
    form, calibrated = rounded.quantization, any(layer.span is not None for _, layer in roundable(rounded.vae))
    maps = maps_rounded(device) if calibrated else {}
    found = {label: f"in {own}; the model is in {form or 'none'}" for label, own in maps.items() if own != form}
    inputs = device.type == "cpu" and form == "int8" and native.instructions()
    if form is None or not (inputs or form in maps.values()):
        return found
    exact = replace(name, dtype="fp32", quantization=None).open(CPU)
    drawn = draw(exact, CPU, positions)
    if inputs:
        pairs = zip(models_of(exact), models_of(rounded), strict=True)
        kl = max(_kl(*pair, drawn) for pair in pairs)
        if kl > MOST_KL:
            found[INPUTS_ROUNDED] = f"moves predictions by a KL of {kl:.1e} nats; expected at most {MOST_KL:.0e}"
    if form in maps.values():
        reason = _too_far(rounded.vae, exact.vae, drawn, form)
        found |= {label: reason for label, own in maps.items() if own == form and reason is not None}
    return found


CPU = torch.device("cpu")


def maps_rounded(device: torch.device) -> dict[str, str]:
    """Variants of 8-bit convolutions on a device of this kind, as "op name", and their numbers."""
    if device.type == "cpu":
        return {f"conv3x3 {INT8}": "int8"} if has_int8() else {}
    return {f"conv3x3 {name}": kind.form for name, kind in EIGHT_BITS.items() if name != INT8}


def convolutions_left(vae: HQVAE, device: torch.device, refused: Mapping[str, str]) -> list[str]:
    """Of a calibrated decoder on a GPU, the variant of each form that is not refused, tiles aside."""
    if device.type == "cpu" or all(layer.span is None for _, layer in roundable(vae)):
        return []
    labels = (label for label in maps_rounded(device) if label not in refused)
    return [name for label in labels if EIGHT_BITS[name := label.partition(" ")[2]].tile is None]


def _on_the_cpu(name: ModelName) -> ModelName:
    """In what a CPU computes in, of which bf16 is the nearest to fp16."""
    dtype = read_precision(name.dtype).dtype
    return replace(name, dtype="bf16" if dtype is torch.float16 else str(dtype).removeprefix("torch."))


def _too_far(rounded: HQVAE, exact: HQVAE, drawn: Drawn, form: str) -> str | None:
    """Why pictures in 8 bits are not to be had, or None."""
    pictures = decode_in_8_bits(rounded, drawn.codes, form)
    decibels = float(psnr(pictures, decode_codes(exact, drawn.codes)).mean())
    if decibels >= LEAST_PSNR:
        return None
    return f"gives pictures {decibels:.1f} dB from fp32's; expected at least {LEAST_PSNR:.0f}"


@inference()
def _kl(exact: HQTransformer, rounded: HQTransformer, drawn: Drawn) -> float:
    codes, condition = drawn
    if exact.config.condition == "codes":  # a second model, whose prefix is the top map
        condition, codes = codes[0].flatten(1), codes[1:]
    known = list(codes[: exact.config.num_levels])
    return mean_kl(exact(known, condition).levels, rounded(known, condition).levels)


# ---------------------------------------------------------------------------------------------------- convolutions


def calibrate_decoder(made: Checkpoint, positions: int = POSITIONS) -> None:
    """Let the decoder be computed in 8 bits (:mod:`hqtvae_fast.model.calibration`), by what the checkpoint draws in
    fp32 on the CPU; of the checkpoint itself nothing but the spans changes."""
    own, device = copy.deepcopy(made), torch.device("cpu")
    own.vae.float().to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    own.vae.set_decoder_dtype(torch.float32).fold()
    for model in models_of(own):
        model.to(device=device, dtype=torch.float32).eval().prepare()
    codes = draw(own, device, positions).codes
    calibrate(own.vae, lambda: decode_codes(own.vae, codes))
    for (_, layer), (_, calibrated) in zip(roundable(made.vae), roundable(own.vae), strict=True):
        layer.span = calibrated.span


def decode_in_8_bits(vae: HQVAE, codes: Sequence[Tensor], form: str = "int8") -> Tensor:
    """:func:`hqtvae_fast.engine.decode_codes` on a CPU with all convolutions in 8 bits that are calibrated to it: as a
    plan would have them, or by their definition, slowly, where the processor has no instructions for it."""
    if form == "int8" and has_int8():
        with recording() as known:
            decode_codes(vae, codes)
        where = [key for key, (op, inputs) in known.items() if op == "conv3x3" and inputs[-1] is not None]
        with using(Plan("tuned", dict.fromkeys(where, INT8))):
            return decode_codes(vae, codes)
    other = copy.deepcopy(vae)
    for name, layer in list(roundable(other)):
        if layer.span is not None:
            parent, _, own = name.rpartition(".")
            setattr(other.get_submodule(parent), own, AsDefined(layer, layer.span, form))
    return decode_codes(other, codes)


class AsDefined(nn.Module):
    """A calibrated convolution in 8 bits, as a GPU's kernel is held to."""

    def __init__(self, layer: Remade, span: Tensor, form: str) -> None:
        super().__init__()
        conv: Any = layer.conv if isinstance(layer, Upsample) else layer
        folded = layer.folded if isinstance(layer, Upsample) else None
        weight = conv.weight if folded is None else folded
        made = QuantizedConv.of(weight, conv.bias, folded is not None, span, form=form)
        self.convolve = made.by("reference")

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x)

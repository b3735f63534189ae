"""What 8 bits cost a model: its predictions and its pictures beside those of fp32, and the variants that cost too much.

A variant that is right may still round more than a model bears: int8 products round their inputs, with bounds that no
float64 check can judge; so do keys and values in 8 bits. So they are judged by the model itself, on what it draws in
fp32.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import ceil, inf, isnan
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from hqtvae_fast.checkpoint import Checkpoint, spans_of
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine import EngineOptions, Executor, decode_codes
from hqtvae_fast.engine.fused_step import make_step
from hqtvae_fast.engine.options import QuantizedProducts, read_precision
from hqtvae_fast.engine.step import LevelLogits
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.autoencoder import Upsample
from hqtvae_fast.model.calibration import calibrate, roundable
from hqtvae_fast.model.convolution import Remade
from hqtvae_fast.model.linear import Linear, quantized_linears
from hqtvae_fast.model.pyramid import to_local
from hqtvae_fast.modes import inference
from hqtvae_fast.ops import quantized_linear
from hqtvae_fast.ops.kernels.conv3x3 import EIGHT_BITS as CONVOLUTIONS
from hqtvae_fast.ops.kernels.conv3x3 import INT8, QuantizedConv, has_int8
from hqtvae_fast.ops.kernels.int8_linear import native
from hqtvae_fast.pictures.images import psnr
from hqtvae_fast.plan import Plan, recording, using
from hqtvae_fast.text import load_tokenizer
from hqtvae_fast.tune.confirm import EIGHT_BITS
from hqtvae_fast.tune.whole import ModelName, any_rows, models_of

MOST_KL = 2e-3
"""Of 8 bits: the mean over all positions, in nats."""
LEAST_PSNR = 40.0
"""Of int8 and fp8: the mean over pictures, in dB."""
PROMPTS = ("tiger face, 3d", "red apple, flat", "rocket, shaded", "owl, 3d")  # as the demo model was trained
POSITIONS = 2560
"""Judged at least: by 640 of them the demo model's KL is 2.3e-3, by 2,560 1.6e-3."""
INPUTS_ROUNDED = "packed_linear native/int8"
ROWS_ROUNDED: dict[str, QuantizedProducts] = {
    f"quantized_products={which}": which for which in get_args(QuantizedProducts)
}
CPU = torch.device("cpu")


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
    plan = Plan("library" if device.type == "cuda" else "default")  # nothing of ours is proven on this GPU yet
    executor, invalid = Executor(models, made.vae, device, plan), torch.zeros((), dtype=torch.bool, device=device)
    return Drawn(tuple(executor.draw(*rows, invalid, lambda: None)), rows.condition)


def unfit(name: ModelName, device: torch.device, positions: int = POSITIONS) -> dict[str, str]:
    """Of a model in 8 bits: the variants, as "op name" or "engine word", that take its predictions or its pictures
    further than :data:`MOST_KL` and :data:`LEAST_PSNR` from what it is in fp32 (of a file in int8: from its numbers in
    fp32), on what it draws, and the reason; and of a calibrated decoder those in a form that the model is not in.

    Judged on the CPU, whose 8 bits are a GPU's: there no variant is run that has not been proven. Of a GPU the engine's
    words too, each by itself. Empty of random weights, which predict nothing, and where nothing but weights is rounded.
    """
    if name.preset is not None:
        return {}
    exact = _Exact(name, positions)
    words = _unfit_words(name, exact) if device.type != "cpu" and name.eight_bits else {}
    return words | _unfit_kernels(name, exact, device)


class _Exact:
    """What a model is in fp32, and what it draws, once that is asked for."""

    def __init__(self, name: ModelName, positions: int) -> None:
        self.name, self.positions = name, positions

    @cached_property
    def made(self) -> Checkpoint:
        return replace(self.name, dtype="fp32", quantization=None).open(CPU)

    @cached_property
    def drawn(self) -> Drawn:
        return draw(self.made, CPU, self.positions)


def _unfit_words(name: ModelName, exact: _Exact) -> dict[str, str]:
    found, wanted = dict[str, str](), models_of(exact.made)
    for word in EIGHT_BITS:
        if word in ROWS_ROUNDED:
            with using(Plan("library")):  # products of what is not rounded are of weights alone, as a GPU has them
                models = models_of(replace(name, dtype="fp32").open(CPU))
                rounded = [round_rows(model, ROWS_ROUNDED[word]) for model in models]
                kl = [_kl(*pair, exact.drawn) for pair in zip(wanted, rounded, strict=True)]
        else:
            kl = [engine_kl(model, exact.drawn, word) for model in wanted]
        found |= _judged(f"engine {word}", max(kl, key=_far))
    return found


def _unfit_kernels(name: ModelName, exact: _Exact, device: torch.device) -> dict[str, str]:
    if device.type != "cpu" and not spans_of(str(name.checkpoint)):
        return {}
    rounded = _on_the_cpu(name).open(CPU)
    form, calibrated = rounded.quantization, any(layer.span is not None for _, layer in roundable(rounded.vae))
    maps = maps_rounded(device) if calibrated else {}
    found = {label: f"in {own}; the model is in {form or 'none'}" for label, own in maps.items() if own != form}
    if device.type == "cpu" and form == "int8" and native.instructions():
        pairs = zip(models_of(exact.made), models_of(rounded), strict=True)
        found |= _judged(INPUTS_ROUNDED, max((_kl(*pair, exact.drawn) for pair in pairs), key=_far))
    if form is not None and form in maps.values():
        reason = _too_far(rounded.vae, exact.made.vae, exact.drawn, form)
        found |= {label: reason for label, own in maps.items() if own == form and reason is not None}
    return found


def _far(kl: float) -> float:
    return inf if isnan(kl) else kl


def _judged(label: str, kl: float) -> dict[str, str]:
    if kl <= MOST_KL:  # NaN is not
        return {}
    return {label: f"moves predictions by a KL of {kl:.1e} nats; expected at most {MOST_KL:.0e}"}


def round_rows(model: HQTransformer, which: QuantizedProducts = "all") -> HQTransformer:
    """A quantized model, in place, with its products' rows rounded to 8 bits too, as a GPU has them with
    ``quantized_products`` above 16 rows (:func:`hqtvae_fast.ops.quantized_linear`)."""
    for name in quantized_linears(model):
        parent, _, own = name.rpartition(".")
        if which == "but_down" and own == "down":
            continue
        setattr(model.get_submodule(parent), own, InEightBits(cast(Linear, model.get_submodule(name))))
    return model


class InEightBits(nn.Module):
    """A quantized layer as a product of 8-bit numbers."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        quantized = layer.quantized
        assert quantized is not None
        self.numbers = quantized.stored, quantized.scale, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, *self.numbers)


def maps_rounded(device: torch.device) -> dict[str, str]:
    """Variants of 8-bit convolutions on a device of this kind, as "op name", and their numbers."""
    if device.type == "cpu":
        return {f"conv3x3 {INT8}": "int8"} if has_int8() else {}
    return {f"conv3x3 {name}": kind.form for name, kind in CONVOLUTIONS.items() if name != INT8}


def convolutions_left(vae: HQVAE, device: torch.device, refused: Mapping[str, str]) -> list[str]:
    """Of a calibrated decoder on a GPU, the variant of each form that is not refused, tiles aside."""
    if device.type == "cpu" or all(layer.span is None for _, layer in roundable(vae)):
        return []
    labels = (label for label in maps_rounded(device) if label not in refused)
    return [name for label in labels if CONVOLUTIONS[name := label.partition(" ")[2]].tile is None]


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
    known, condition = _known(exact.config, drawn)
    return mean_kl(exact(known, condition).levels, rounded(known, condition).levels)


def _known(config: TransformerConfig, drawn: Drawn) -> tuple[list[Tensor], Tensor | None]:
    """Codes of the levels that a transformer predicts, and what it reads before them."""
    codes, condition = drawn
    if config.condition == "codes":  # a second model, whose prefix is the top map
        condition, codes = codes[0].flatten(1), codes[1:]
    return list(codes[: config.num_levels]), condition


@inference()
def engine_kl(model: HQTransformer, drawn: Drawn, text: str) -> float:
    """What the engine's words do to predictions: the mean KL of the steps' logits without and with them, in nats."""
    return mean_kl(*(_step_logits(model, drawn, EngineOptions.read(words)) for words in ("", text)))


def _step_logits(model: HQTransformer, drawn: Drawn, options: EngineOptions) -> list[Tensor]:
    """Logits [B, positions, K] of each level, step by step as codes are drawn, over the codes that were."""
    config, (known, condition) = model.config, _known(model.config, drawn)
    local_BTN = to_local(known, config.side)
    step, found = make_step(model, len(local_BTN), "fused", options), defaultdict[int, list[Tensor]](list)
    for index in range(config.num_steps):
        h_BD = step.body(index, condition, local_BTN)
        for group in config.groups:
            for part in step.head(h_BD, local_BTN[:, index], group):
                assert isinstance(part, LevelLogits)
                found[part.level].append(part.logits)
    return [torch.cat(found[level], dim=1) for level in sorted(found)]


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

"""How long training takes and what memory it needs, before it has begun.

A training pass over one picture is run on the meta device, which tells its arithmetic and the bytes that it keeps for
the backward pass. Time is three parts: the arithmetic, at the rate of this machine's matrix products; the memory that
everything between them moves, and the optimiser, at its memory's; and a fixed price an operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, VAEConfig
from hqtvae_fast.hardware import Device, default_dtype, measure_this_machine
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.cost import encode_flops
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.model.layers import Blocks
from hqtvae_fast.train.config import Autocast
from hqtvae_fast.train.losses.discriminator import PatchDiscriminator
from hqtvae_fast.train.losses.perceptual import PerceptualDistance, VGG16Trunk

# Chosen to fit the updates that benchmarks/studies/training.md lists, to within a tenth.
BACKWARD = 3  # times the arithmetic of the forward pass, which it holds
EFFICIENCY = 1.0  # of the best matrix product, by the model's
MOVED_A_BYTE = 17.0  # bytes of memory traffic for each byte kept for the backward pass
MOVED_A_PARAMETER = 60.0  # bytes of traffic an update: gradient, its norm, two averages, the weight
SECONDS_AN_OPERATION = 60e-6  # for each tensor kept

AUTOCAST = 0.65  # bytes kept under autocast to 16 bits, of those in fp32: norms and losses stay in fp32
COPIES = 4  # of each weight: itself, its gradient and two averages
WORKING = 1.25  # bytes at the peak, for each byte kept
PROCESS = 5 * 10**8  # Python, torch and its libraries
ROOM = 0.9  # of the memory there is


@dataclass(frozen=True)
class Extras:
    """What a run does besides the model's own pass."""

    discriminator_channels: int = 0
    """Stage 1; 0: no discriminator."""
    perceptual: bool = False
    """Stage 1, with VGG16."""
    encodes: bool = False
    """Stage 2 on pictures that are coded as they come, and not on stored codes."""
    checkpointing: bool = False
    """Stage 2's activation checkpointing."""


@dataclass(frozen=True)
class Work:
    """Of an update: ``flops`` and bytes ``saved`` for the backward pass, in fp32, a picture; ``operations`` that keep
    something; ``parameters`` that are trained, and values that are ``frozen``."""

    flops: int
    saved: int
    operations: int
    parameters: int
    frozen: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def times(self, flops: int, saved: int) -> Work:
        return Work(self.flops * flops, self.saved * saved, self.operations * saved, self.parameters, self.frozen)


# ---------------------------------------------------------------------------------------------------------------- asked


def training_seconds(
    config: HQTVAEConfig,
    stage: str,
    batch: int,
    updates: int,
    device: str | torch.device,
    precision: Autocast = "no",
    extras: Extras | None = None,
) -> float:
    """Seconds of ``updates`` with ``batch`` pictures each on one device, of which about a second is spent measuring.

    ``stage``: stage1 or stage2. ``precision``: as in a run. Without reading pictures, validation and saving.
    """
    found = work(config, stage, extras or Extras())
    machine = rates(torch.device(device), _dtype(precision))
    moved = batch * found.saved * MOVED_A_BYTE * (1.0 if precision == "no" else AUTOCAST)
    update = (
        batch * found.flops / (EFFICIENCY * machine.flops)
        + (moved + found.parameters * MOVED_A_PARAMETER) / machine.bandwidth
        + found.operations * SECONDS_AN_OPERATION
    )
    return updates * update


def training_bytes(
    config: HQTVAEConfig, stage: str, batch: int, precision: Autocast = "no", extras: Extras | None = None
) -> int:
    """Bytes at the peak of an update of ``batch`` pictures, which are those of one micro-batch of one process."""
    found = work(config, stage, extras or Extras())
    kept = batch * found.saved * (1.0 if precision == "no" else AUTOCAST)
    return round(PROCESS + 4 * (COPIES * found.parameters + found.frozen) + WORKING * kept)


def fits(
    config: HQTVAEConfig,
    stage: str,
    batch: int,
    memory: float,
    precision: Autocast = "no",
    extras: Extras | None = None,
) -> bool:
    """Whether an update of ``batch`` pictures needs less than nine tenths of so many bytes of memory."""
    return training_bytes(config, stage, batch, precision, extras) <= ROOM * memory


def training_precision(device: str | torch.device) -> Autocast:
    """What trains fastest here: bf16 where it is multiplied in hardware, fp16 on a GPU before that, else fp32."""
    return cast(Autocast, {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(default_dtype(device), "no"))


# -------------------------------------------------------------------------------------------------------------- counted


@cache
def rates(device: torch.device, dtype: torch.dtype) -> Device:
    """This machine's, measured once."""
    return measure_this_machine(device, dtype)


def _dtype(precision: Autocast) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@cache
def work(config: HQTVAEConfig, stage: str, extras: Extras = Extras()) -> Work:
    """What an update is made of. ValueError for stage 2 of a configuration that has none."""
    if stage == "stage1":
        return _stage1(config.vae, extras)
    stage2 = config.transformer if config.refiner is None else config.refiner
    if stage2 is None:
        raise ValueError("stage: expected a configuration with a transformer for stage 2; got one with stage 1 only")
    found = _stage2(stage2, extras.checkpointing)
    encoding = encode_flops(config.vae) if extras.encodes else 0
    with without_values():
        frozen = sum(value.numel() for value in HQVAE(config.vae).state_dict().values())
    return found + Work(encoding, 0, 0, 0, frozen)


def _stage1(config: VAEConfig, extras: Extras) -> Work:
    images = torch.zeros(1, 3, config.resolution, config.resolution, dtype=torch.float32, device="meta")
    found = _traced(lambda: HQVAE(config), lambda model: model(images)).times(BACKWARD, 1)
    if extras.discriminator_channels:
        scores = _traced(lambda: PatchDiscriminator(extras.discriminator_channels), lambda model: model(images))
        # Forward, back to the picture for the weight and again for the loss; then two pictures, both ways.
        found += scores.times(3 + 2 * BACKWARD, 2)
    if extras.perceptual:
        features = _traced(lambda: PerceptualDistance(VGG16Trunk(), None, ""), lambda model: model(images, images))
        found += Work(features.flops * 3 // 2, features.saved, features.operations, 0, features.parameters)
    return found


def _stage2(config: TransformerConfig, checkpointing: bool) -> Work:
    sides = [config.side * 2**level for level in range(config.num_levels)]
    codes = [torch.zeros(1, side, side, dtype=torch.int64, device="meta") for side in sides]
    shape = {"none": None, "class": (1,)}.get(config.condition, (1, config.prefix_length))
    condition = None if shape is None else torch.zeros(shape, dtype=torch.int64, device="meta")
    return _traced(lambda: HQTransformer(config), lambda model: model(codes, condition), BACKWARD, checkpointing)


def _traced(
    make: Callable[[], nn.Module], run: Callable[[Any], object], backward: int = 1, checkpointing: bool = False
) -> Work:
    """Arithmetic of ``backward`` passes, and what one keeps. ``checkpointing``: stacks of blocks keep their blocks'
    inputs, and in turn each block's rest; their pass is made twice."""
    with without_values():
        model = make().train()
    kept, counter = _Kept(model), FlopCounterMode(display=False)
    stacks = _Stacks(model, counter, kept)
    with counter:
        run(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda value: value):  # the counter would keep more
        run(model)
    extra_flops, extra_saved = 0, 0
    if checkpointing:
        extra_flops, extra_saved = stacks.flops, stacks.inputs + stacks.largest - stacks.saved
    parameters = sum(value.numel() for value in model.parameters())
    return Work(backward * counter.get_total_flops() + extra_flops, kept.size + extra_saved, kept.count, parameters)


class _Kept:
    """Bytes of tensors that are kept for the backward pass, each storage once, the model's own weights not."""

    def __init__(self, model: nn.Module) -> None:
        self.seen = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
        self.alive: list[Tensor] = []  # so that no other storage gets the address of one that was seen
        self.size = self.count = 0

    def keep(self, value: Tensor) -> Tensor:
        self.alive.append(value)
        self.count += 1
        storage = value.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.size += storage.nbytes()
        return value


class _Stacks:
    """Of all stacks of blocks: arithmetic of a pass, bytes kept, of their blocks' inputs, and of the largest block."""

    def __init__(self, model: nn.Module, counter: FlopCounterMode, kept: _Kept) -> None:
        self.flops = self.saved = self.inputs = self.largest = 0
        before = [0, 0]

        def enter(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            before[:] = counter.get_total_flops(), kept.size

        def leave(module: Blocks, given: tuple[Tensor, ...], result: Tensor) -> None:
            self.flops += counter.get_total_flops() - before[0]
            layers, size = len(module.layers), kept.size - before[1]
            self.saved += size
            self.inputs += layers * given[0].nbytes if size else 0  # not in the pass that counts arithmetic
            self.largest = max(self.largest, size // max(1, layers))

        for module in model.modules():
            if isinstance(module, Blocks):
                module.register_forward_pre_hook(enter)
                module.register_forward_hook(leave)

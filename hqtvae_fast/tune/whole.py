"""A model drawn and decoded as a whole under a plan: what a plan is confirmed by."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.checkpoint import Checkpoint
from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, preset
from hqtvae_fast.engine.batches import Batch, Cutter
from hqtvae_fast.engine.executor import Executor, Job, Rows, generate
from hqtvae_fast.engine.loop import SamplingParams
from hqtvae_fast.engine.options import read_precision
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.calibration import roundable
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.model.linear import Linear, QuantizedWeight, quantize_linears
from hqtvae_fast.plan import Plan

OVERLAPPED = 3  # batches of a run in which one is drawn while another is decoded


@dataclass(frozen=True)
class ModelName:
    """What is opened: a checkpoint, or a preset with random weights; ``dtype`` as the pipeline takes it."""

    checkpoint: str | None
    preset: str | None
    dtype: str
    quantization: str | None = None

    @property
    def config(self) -> HQTVAEConfig:
        return read_config(str(self.checkpoint), None) if self.preset is None else preset(self.preset)

    @property
    def eight_bits(self) -> bool:
        """Whether the user has allowed that numbers are rounded to 8 bits."""
        return self.quantization is not None

    def open(self, device: torch.device) -> Checkpoint:
        """On a device, as a pipeline has it there."""
        if self.preset is None:
            made = checkpoints.load(str(self.checkpoint))
        else:
            made = checkpoints.build(self.config)
        dtype = read_precision(self.dtype).dtype
        made.vae.float().to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        made.vae.set_decoder_dtype(dtype).fold()
        for model in models_of(made):
            if self.quantization is not None:
                quantize_linears(model, self.quantization)
            model.to(device=device, dtype=dtype).eval().prepare()
        return made

    def shapes(self) -> Checkpoint:
        """Without values, and without a device; quantized as asked for, with the spans that a checkpoint has."""
        dtype = read_precision(self.dtype).dtype
        spans = checkpoints.spans_of(str(self.checkpoint)) if self.preset is None else {}
        with without_values():
            made = checkpoints.build(self.config)
            made.vae.set_decoder_dtype(dtype)
        for layer_name, convolution in roundable(made.vae):
            convolution.span = spans.get(f"vae.{layer_name}")
        for model in models_of(made):
            model.to(dtype)
            for layer in model.modules():
                if self.quantization is not None and isinstance(layer, Linear):
                    layer.adopt(QuantizedWeight.without_values(layer.weight, self.quantization))
        return made


def models_of(checkpoint: Checkpoint) -> list[HQTransformer]:
    """The transformers in drawing order."""
    return [model for model in (checkpoint.transformer, checkpoint.refiner) if model is not None]


class Whole:
    """A model in memory, and an executor for each plan that was asked for last."""

    def __init__(self, name: ModelName, device: torch.device) -> None:
        self.device, self.tf32 = device, read_precision(name.dtype).tf32
        self.checkpoint = name.open(device)
        self._executors: dict[str, Executor] = {}

    def seconds(self, plan: Plan, batch: int) -> float:
        """Of a batch drawn and decoded to bytes on the CPU; where batches overlap, a third of three."""
        executor = self._executor(plan)
        options = executor.options(batch)
        total = batch * (OVERLAPPED if options.overlaps(self.device) else 1)
        job = Job(
            rows=partial(self._rows, total),
            draw=executor.draw,
            decode=partial(executor.decode, as_bytes=True),
            describe=str,
            steps=nullcontext(lambda: None),
        )
        start = time.perf_counter()
        how: dict[str, Any] = {"overlap": options.overlap, "ahead": options.ahead}
        for _ in generate(job, Cutter(total, batch, fixed=True), self.device, **how):
            pass
        return (time.perf_counter() - start) * batch / total

    def _executor(self, plan: Plan) -> Executor:
        known = self._executors.pop(plan.id, None)
        if known is None:
            while len(self._executors) > 1:  # captures hold memory
                self._executors.pop(next(iter(self._executors)))
            known = Executor(models_of(self.checkpoint), self.checkpoint.vae, self.device, plan, tf32=self.tf32)
        self._executors[plan.id] = known
        return known

    def _rows(self, total: int, batch: Batch) -> Rows:
        return any_rows([model.config for model in models_of(self.checkpoint)], batch.start, batch.size, self.device)


def any_rows(models: Sequence[TransformerConfig], start: int, count: int, device: torch.device) -> Rows:
    """Images of which only the number matters: class 0, 1, ..., prompts of zeros, or top codes of zeros."""
    prior, params = models[0], []
    condition: Tensor | None = None
    given: Tensor | None = None
    seeds = torch.arange(start, start + count, dtype=torch.int64, device=device)
    if prior.condition == "class":
        condition = seeds % prior.num_classes
    elif prior.condition == "text":
        condition = torch.zeros(count, prior.prefix_length, dtype=torch.int64, device=device)
    elif prior.condition == "codes":
        side = round(prior.prefix_length**0.5)
        given = torch.zeros(count, side, side, dtype=torch.int64, device=device)
    for levels in (model.num_levels for model in models):
        params.append(SamplingParams((1.0,) * levels, (None,) * levels, (None,) * levels))
    return Rows(condition, seeds, params, given)


# ------------------------------------------------------------------------------------------------------------- as JSON


def packed_name(name: ModelName) -> dict[str, Any]:
    return asdict(name)


def packed_plan(plan: Plan) -> dict[str, Any]:
    verified = None if plan.verified is None else sorted(plan.verified)
    engine = {str(bucket): text for bucket, text in plan.engine.items()}
    return {"kind": plan.kind, "choices": dict(plan.choices), "engine": engine, "refused": dict(plan.refused)} | {
        "verified": verified
    }


def unpacked_plan(content: Mapping[str, Any]) -> Plan:
    engine = {int(bucket): text for bucket, text in content["engine"].items()}
    verified = None if content["verified"] is None else frozenset(content["verified"])
    return Plan(content["kind"], content["choices"], engine, content["refused"], verified)

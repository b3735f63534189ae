"""Batch sizes for a pipeline by measurement: what is timed, and under which facts the times hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, to_dict
from hqtvae_fast.engine import SamplingParams
from hqtvae_fast.engine.batch_tuning import Facts
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.engine.precision import Precision
from hqtvae_fast.hardware import device_name
from hqtvae_fast.request import Request


def tuning_facts(
    config: HQTVAEConfig, device: torch.device, precision: Precision, quantization: str | None, options: EngineOptions
) -> Facts:
    """Whatever changes how long a batch takes: all of these must be equal for a time to count."""
    shape = json.dumps(to_dict(config), sort_keys=True, default=str)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "model": hashlib.sha256(shape.encode()).hexdigest()[:16],
        "dtype": str(precision.dtype).removeprefix("torch."),
        "quantization": quantization,
        **dataclasses.asdict(options),
    }


def any_request(models: list[TransformerConfig], total: int) -> Request:
    """Images of which only the number matters: class 0, 1, ..., a prompt of zeros, or top codes of zeros."""
    prior, given = models[0], None
    condition: Tensor | None = None
    if prior.condition == "class":
        condition = torch.arange(total) % prior.num_classes
    elif prior.condition == "text":
        condition = torch.zeros(total, prior.prefix_length, dtype=torch.int64)
    elif prior.condition == "codes":
        side = round(prior.prefix_length**0.5)
        given = torch.zeros(total, side, side, dtype=torch.int64)
    params: list[Any] = [
        SamplingParams((1.0,) * model.num_levels, (None,) * model.num_levels, (None,) * model.num_levels)
        for model in models
    ]
    return Request(condition, given, torch.arange(total), params)

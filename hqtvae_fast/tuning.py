"""A pipeline's batch sizes: the device's default, or what was measured; what is timed, and under which facts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.arguments import positive
from hqtvae_fast.config import BUCKETS, DEFAULT_BATCH, HQTVAEConfig, TransformerConfig, to_dict
from hqtvae_fast.engine import SamplingParams
from hqtvae_fast.engine.batches import BatchTuning, Cutter, Facts, default_file, load, measure, save
from hqtvae_fast.engine.options import Precision
from hqtvae_fast.hardware import device_name
from hqtvae_fast.request import Request


class BatchSizes:
    """The sizes that a pipeline computes with on a device: those measured under the same facts, if there are any in the
    default file. ``facts``: what :func:`tuning_facts` says now."""

    def __init__(self, device: torch.device, facts: Callable[[], Facts]) -> None:
        self.default = DEFAULT_BATCH.get(device.type, DEFAULT_BATCH["cpu"])
        """One that no measurement changes: ``deterministic="batch"`` goes by it."""
        self.tuning: BatchTuning | None = None
        self._facts = facts
        try:
            self.tuning = load(facts(), default_file())
        except (ValueError, OSError) as error:
            warnings.warn(f"{error}: batch sizes are the default ones", stacklevel=4)

    @property
    def best(self) -> int:
        """The fastest one measured, else the default."""
        return self.default if self.tuning is None else self.tuning.best

    def cutter(self, total: int, batch_size: int | None, *, fixed: bool = False, buckets: bool) -> Cutter:
        """Of ``total`` images into batches of ``batch_size``; None: of the best size, or the default where they are
        ``fixed``. ValueError on one that is no size."""
        default = self.default if fixed else self.best
        limit = default if batch_size is None else positive("batch_size", batch_size)
        sizes = BUCKETS if self.tuning is None else self.tuning.buckets
        return Cutter(total, limit, fixed=fixed, buckets=buckets, sizes=sizes)

    def tune(
        self,
        run: Callable[[int], None],
        sizes: Sequence[int],
        batches: int,
        file: Path | None,
        on_size: Callable[[int, float], None] | None,
    ) -> BatchTuning:
        """Times ``run`` as :func:`hqtvae_fast.engine.batches.measure` does, and goes by the times from now on."""
        sizes = [positive("sizes", size) for size in sizes]
        where = default_file() if file is None else file
        load(self._facts(), where)  # a file that cannot be kept is told of before the minutes are spent
        self.tuning = measure(run, sizes, batches=batches, on_size=on_size)
        save(self.tuning, self._facts(), where)
        return self.tuning


def tuning_facts(
    config: HQTVAEConfig, device: torch.device, precision: Precision, quantization: str | None, plan: str
) -> Facts:
    """Whatever changes how long a batch takes: all of these must be equal for a time to count."""
    shape = json.dumps(to_dict(dataclasses.replace(config, id2label=())), sort_keys=True, default=str)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "model": hashlib.sha256(shape.encode()).hexdigest()[:16],
        "dtype": str(precision.dtype).removeprefix("torch."),
        "quantization": quantization,
        "plan": plan,
    }


def any_request(models: list[TransformerConfig], total: int) -> Request:
    """Images of which only the number matters: class 0, 1, ..., a prompt of zeros, or top codes of zeros."""
    prior, given = models[0], None
    condition: Tensor | None = None
    if prior.condition == "class":
        condition = torch.arange(total, dtype=torch.int64, device="cpu") % prior.num_classes
    elif prior.condition == "text":
        condition = torch.zeros(total, prior.prefix_length, dtype=torch.int64, device="cpu")
    elif prior.condition == "codes":
        side = round(prior.prefix_length**0.5)
        given = torch.zeros(total, side, side, dtype=torch.int64, device="cpu")
    params: list[Any] = [
        SamplingParams((1.0,) * model.num_levels, (None,) * model.num_levels, (None,) * model.num_levels)
        for model in models
    ]
    return Request(condition, given, torch.arange(total, dtype=torch.int64, device="cpu"), params)

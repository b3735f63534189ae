"""Learning-rate schedules, as pure functions of the number of the update.

A schedule gives the factor on the base learning rate at update ``step``, counted from 0. The warm-up rises in equal
parts from a 0 that no update uses: the first update has 1/warmup_steps of the base rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_constant(step: int, *, warmup_steps: float) -> float:
    """Linear to 1 at the ``warmup_steps``-th update, then 1. A fraction of an epoch need not be a whole number."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def warmup_cosine(step: int, *, warmup_steps: float, total_steps: int) -> float:
    """Linear to 1 at the ``warmup_steps``-th update, then half a cosine to 0 at the ``total_steps``-th and after."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps: expected 0 to less than total_steps = {total_steps}; got {warmup_steps}")
    if step + 1 <= warmup_steps:
        return warmup_constant(step, warmup_steps=warmup_steps)
    progress = min(1.0, (step + 1 - warmup_steps) / (total_steps - warmup_steps))
    return (1 + math.cos(math.pi * progress)) / 2


def warmup_constant_lr(optimizer: Optimizer, *, warmup_steps: float, first_step: int = 0) -> LambdaLR:
    """:func:`warmup_constant` as a torch scheduler, to be stepped after each update from ``first_step`` on.

    ``first_step``: the update at which this optimiser joins the run. Its rate is that of the run's update.
    """
    return Schedule(optimizer, partial(warmup_constant, warmup_steps=warmup_steps), first_step)


def warmup_cosine_lr(optimizer: Optimizer, *, warmup_steps: float, total_steps: int, first_step: int = 0) -> LambdaLR:
    """:func:`warmup_cosine` as a torch scheduler, likewise."""
    factor = partial(warmup_cosine, warmup_steps=warmup_steps, total_steps=total_steps)
    return Schedule(optimizer, factor, first_step)


class Schedule(LambdaLR):
    """Of a checkpoint it takes how many updates were made, and nothing else: rates and all other options of the
    optimiser, whose state must be loaded before, are this run's own, so that a run may go on with others."""

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], first_step: int) -> None:
        for group in optimizer.param_groups:  # which torch asks for where a schedule does not begin at 0
            group["initial_lr"] = group["lr"]
        self.options = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        super().__init__(optimizer, factor, last_epoch=first_step - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        rates = self._rates()
        for group, options, rate in zip(self.optimizer.param_groups, self.options, rates, strict=True):
            group.update(options, lr=rate)
        self._last_lr = rates

    def _rates(self) -> list[float | Tensor]:
        return [base * factor(self.last_epoch) for factor, base in zip(self.lr_lambdas, self.base_lrs, strict=True)]

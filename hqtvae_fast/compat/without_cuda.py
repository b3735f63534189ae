"""Calls for CUDA in a script, on a machine without a GPU: all stays on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

from hqtvae_fast.hardware import device_name

CPU = torch.device("cpu")


class Event:
    """A moment on the host's clock."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""
        return 1000 * (end.seconds - self.seconds)

    def synchronize(self) -> None:
        pass


def _on_cpu(value: Any) -> Any:
    """A CUDA device, in any of its spellings, as the CPU."""
    cuda = isinstance(value, str | torch.device) and str(value).partition(":")[0] == "cuda"
    return CPU if cuda else value


def _moving(move: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(move)
    def to(self: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("device") is not None:
            options["device"] = _on_cpu(options["device"])
        return move(self, *map(_on_cpu, arguments), **options)

    return to


def stay_on_cpu() -> None:
    """Let ``.cuda()``, ``.to("cuda")`` and what scripts ask of ``torch.cuda`` do on a CPU what they can."""
    for kind in (torch.Tensor, nn.Module):
        kind.cuda = lambda self, *arguments, **options: self  # type: ignore[method-assign]
        kind.to = _moving(kind.to)  # type: ignore[method-assign]
    cuda: Any = torch.cuda
    cuda.Event = Event
    cuda.synchronize = lambda *arguments: None
    cuda.get_device_name = lambda *arguments: device_name(CPU)

"""Where a call's time goes, by kinds of operations, from torch's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

KINDS = {  # the first whose word is in an operation's name
    "convolutions": ("conv",),
    "group norms": ("group_norm",),
    "the optimiser": ("optimizer", "adam"),
    "layer norms": ("layer_norm",),
    "the code search": ("nearest_code", "hierarchical", "cdist", "argmin"),
    "attention": ("attention", "softmax"),
    "matrix products": ("mm", "linear"),
    "dropout": ("bernoulli", "dropout"),
    "activations": ("gelu", "silu", "sigmoid", "relu"),
    "copies and casts": ("copy", "fill", "zero", "cat", "pad", "clone"),
}
OTHER = "everything else"
SHOWN = 3


def kind(operation: str) -> str:
    """What an operation counts as."""
    name = operation.lower()
    return next((what for what, words in KINDS.items() if any(word in name for word in words)), OTHER)


def costs(run: Callable[[], Any], device: torch.device) -> list[tuple[str, float]]:
    """The share of each kind in the time of one call, its own operations' alone, the largest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times: Counter[str] = Counter()
    for event in profile.key_averages():
        times[kind(event.key)] += getattr(event, own)
    total = sum(times.values())
    return [(what, time / total) for what, time in times.most_common() if time > 0]


def in_words(found: list[tuple[str, float]]) -> str:
    """ "convolutions 78%, group norms 9%, copies and casts 3%"."""
    return ", ".join(f"{what} {share:.0%}" for what, share in found[:SHOWN])

"""Whether a module is what the model was built of: the one place that decides if a fused operation may take its place.

A module that was wrapped or replaced (a LoRA layer), that is parametrized or that has hooks is called as a module.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_modules


def plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling it does what one of these classes does with its own parameters, and nothing else."""
    return type(module) in kinds and not hooked(module)


def hooked(module: nn.Module) -> bool:
    """Whether something else happens too when it is called."""
    own = module.__dict__
    return bool(
        "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or torch_modules._global_forward_hooks
        or torch_modules._global_forward_pre_hooks
    )

"""The released implementation's calls, on this engine: three ways, from one line to none.

from hqtvae_fast.compat import sampling_ihqgpt  # was: from hqvae.utils.sampling import sampling_ihqgpt
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hqtvae_fast.compat.sampling import sampling_hqtransformer, sampling_ihqgpt
    from hqtvae_fast.compat.stage2 import convert
    from hqtvae_fast.compat.whole import accelerate

__all__ = ["accelerate", "convert", "sampling_hqtransformer", "sampling_ihqgpt"]
_HOMES = {
    "accelerate": "whole",
    "convert": "stage2",
    "sampling_hqtransformer": "sampling",
    "sampling_ihqgpt": "sampling",
}


def __getattr__(name: str) -> Any:
    """From the module that has it, when it is first asked for: the command's ``--help`` does without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

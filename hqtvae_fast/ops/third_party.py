"""Other people's libraries, for comparison and as backends: imported where they are asked for and nowhere else."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.backend import BackendError

HALF = (torch.bfloat16, torch.float16)


def installed(package: str) -> Any:
    """The package; BackendError where it is not installed."""
    if importlib.util.find_spec(package) is None:
        raise BackendError(f"{package} is not installed")
    return importlib.import_module(package)


def why_not_attention(package: str, qkv: Tensor) -> str | None:
    """None where flash-attn or xformers can take these queries, keys and values, else the reason."""
    if not qkv.is_cuda or qkv.dtype not in HALF:
        return f"expected bf16 or fp16 on a CUDA device; got {qkv.dtype} on {qkv.device}"
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def attention(package: str, qkv: Tensor) -> Any:
    """The package; BackendError where :func:`why_not_attention` has a reason."""
    reason = why_not_attention(package, qkv)
    if reason is not None:
        raise BackendError(f"{package}: {reason}")
    return importlib.import_module(package)

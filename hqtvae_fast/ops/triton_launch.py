"""What every launcher of Triton kernels asks: can they run here, on which device, and are they only interpreted."""

from __future__ import annotations

import contextlib
import importlib.util
import os

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(*tensors: Tensor) -> str | None:
    """None where kernels can take these floating tensors, else the reason."""
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"expected fp32, bf16 or fp16; got {tensor.dtype}"
        if tensor.device.type != "cuda" and not interpreted():
            return f"expected tensors on a CUDA device (or TRITON_INTERPRET=1); got {tensor.device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
    if device is not None and torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return f"expected compute capability 8.0 or above, where tensor cores take bf16 and TF32; got {major}.{minor}"
    return None


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, as it read when they were defined."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()

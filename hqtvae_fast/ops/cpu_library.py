"""The compiled kernels for CPUs (csrc/cpu), loaded through ctypes where installing could build them."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = Path(__file__).parent.parent  # where setup.py puts it
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_ROUNDED = (ctypes.c_float, ctypes.c_int, ctypes.c_float, ctypes.c_int)  # eps, silu, 1 / scale, zero
_SIGNATURES = {
    "hqtvae_linear_bf16_pack": (*[_POINTER] * 2, *[_COUNT] * 2),
    "hqtvae_linear_bf16": (*[_POINTER] * 5, *[_COUNT] * 3, ctypes.c_int),
    "hqtvae_int8_instructions": (),
    "hqtvae_linear_int8_scratch_bytes": (_COUNT, _COUNT),
    "hqtvae_linear_int8_pack": (*[_POINTER] * 3, *[_COUNT] * 2, ctypes.c_int),
    "hqtvae_linear_int8": (*[_POINTER] * 7, *[_COUNT] * 3, *[ctypes.c_int] * 3),
    "hqtvae_avx2_supported": (),
    "hqtvae_decode_attention_bf16": (*[_POINTER] * 5, *[_COUNT] * 6, ctypes.c_float),
    "hqtvae_decode_attention_fp32": (*[_POINTER] * 5, *[_COUNT] * 6, ctypes.c_float),
    "hqtvae_philox_words": (*[_POINTER] * 4, *[_COUNT] * 2),
    "hqtvae_group_norm_silu_fp32": (*[_POINTER] * 9, *[_COUNT] * 5, ctypes.c_float, ctypes.c_int),
    "hqtvae_group_norm_silu_bf16": (*[_POINTER] * 9, *[_COUNT] * 5, ctypes.c_float, ctypes.c_int),
    "hqtvae_group_norm_silu_rounded_fp32": (*[_POINTER] * 9, *[_COUNT] * 5, *_ROUNDED),
    "hqtvae_group_norm_silu_rounded_bf16": (*[_POINTER] * 9, *[_COUNT] * 5, *_ROUNDED),
    "hqtvae_group_norm_silu_backward_fp32": (*[_POINTER] * 9, *[_COUNT] * 5, ctypes.c_int),
    "hqtvae_group_norm_silu_backward_bf16": (*[_POINTER] * 9, *[_COUNT] * 5, ctypes.c_int),
    "hqtvae_round_map_fp32": (*[_POINTER] * 3, _COUNT, ctypes.c_float, ctypes.c_int),
    "hqtvae_round_map_bf16": (*[_POINTER] * 3, _COUNT, ctypes.c_float, ctypes.c_int),
    "hqtvae_winograd_scratch": (_COUNT, _COUNT),
    "hqtvae_winograd": (*[_POINTER] * 6, *[_COUNT] * 6, ctypes.c_int),
}
_SIZES = ("hqtvae_winograd_scratch", "hqtvae_linear_int8_scratch_bytes")
_RESULTS = {**dict.fromkeys(_SIZES, _COUNT), "hqtvae_int8_instructions": ctypes.c_int}
_RESULTS |= {"hqtvae_avx2_supported": ctypes.c_int}


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library and "", or None and the reason why there is none."""
    found = sorted(PACKAGE.glob("_cpu*.so"))
    if not found:
        return None, "not built: installing found no C++ compiler, or BUILD_CPU=0"
    try:
        kernels = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"cannot be loaded: {error}"
    for name, types in _SIGNATURES.items():
        function = getattr(kernels, name, None)
        if function is None:
            return None, f"built from older sources: {found[0].name} has no {name}; install again"
        function.argtypes, function.restype = types, _RESULTS.get(name)
    return kernels, ""


def why_not_bf16() -> str | None:
    """None where the kernels for AVX512-BF16 run, else the reason."""
    kernels, reason = load()
    if kernels is None:
        return reason
    return None if kernels.hqtvae_avx512_bf16_supported() else "this processor has no AVX512-BF16"


def why_not_avx2() -> str | None:
    """None where the kernels for AVX2 run, else the reason."""
    kernels, reason = load()
    if kernels is None:
        return reason
    return None if kernels.hqtvae_avx2_supported() else "this processor has no AVX2"


def buffer(tensor: Tensor, dtype: torch.dtype, numel: int) -> int:
    """The address of what a kernel reads or writes. ValueError unless it is what the kernel takes it for: so many
    values of that dtype without gaps (in rows, or a channels-last map) on the CPU. A kernel sees an address alone."""
    gaps = not (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last))
    right = tensor.dtype is dtype and tensor.numel() == numel and tensor.is_cpu and not gaps
    address = tensor.data_ptr() if right else 0
    if right and (address or numel == 0):
        return address
    wanted = f"{numel} values of {dtype} without gaps on the CPU"
    got = f"{list(tensor.shape)} of {tensor.dtype} with strides {tensor.stride()} on {tensor.device}"
    nowhere = " without memory, a fake tensor" if right else ""
    raise ValueError(f"buffer of a compiled kernel: expected {wanted}; got {got}{nowhere}")


def library() -> ctypes.CDLL:
    """The library; a RuntimeError gives the reason where there is none."""
    kernels, reason = load()
    if kernels is None:
        raise RuntimeError(f"compiled kernels for CPUs: {reason}")
    return kernels

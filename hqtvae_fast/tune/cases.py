"""From a choice that was recorded back to an op's spec: inputs of exactly those shapes, dtypes and strides, with the
values that the spec gives them, and a run that meets the same choice again.

What :func:`hqtvae_fast.backend.choose` is told and what a spec's ``run`` takes differ a little from op to op; here, and
here alone, is how. An op that is not listed is known at its spec's own cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast import ops
from hqtvae_fast.ops.explain import _signature, _signature_of_case
from hqtvae_fast.ops.kernels.bias_gelu import FORMS
from hqtvae_fast.ops.kernels.embed_codes import MODES
from hqtvae_fast.ops.kernels.group_norm_silu.spec import FORM
from hqtvae_fast.ops.kernels.skinny_linear import GELU
from hqtvae_fast.ops.kernels.skinny_linear.spec import EPSILON, QUANTIZED
from hqtvae_fast.ops.kernels.skinny_linear.triton import Workspace
from hqtvae_fast.ops.spec import Case, Spec

Fitted = tuple[Spec, Case]


def fitted(spec: Spec, inputs: Sequence[Any]) -> Fitted | None:
    """The spec as it runs at this choice, and the case that gives its inputs; None where there is none. ``inputs``:
    what ``choose`` was told; of tensors only shapes, dtypes and strides count."""
    fit = FITS.get(spec.op)
    if fit is not None:
        return fit(spec, *inputs)
    wanted = _signature(tuple(inputs))
    same = (case for case in (*spec.cases, *spec.small) if _signature_of_case(spec, case) == wanted)
    return next(((spec, case) for case in same), None)


# --------------------------------------------------------------------------------------------------------- as one line

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def packed(inputs: Any) -> Any:
    """Inputs of a choice as JSON: tensors by dtype, shape and strides. TypeError on what is none of numbers, text,
    tensors and lists."""
    if isinstance(inputs, Tensor):
        dtype = str(inputs.dtype).removeprefix("torch.")
        return {"dtype": dtype, "shape": list(inputs.shape), "strides": list(inputs.stride())}
    if isinstance(inputs, (list, tuple)):
        return [packed(part) for part in inputs]
    if inputs is None or isinstance(inputs, (bool, int, float, str)):
        return inputs
    raise TypeError(f"expected numbers, text, tensors and lists; got {type(inputs).__name__}")


def unpacked(content: Any) -> Any:
    """The same with tensors that have no values."""
    if isinstance(content, dict):
        dtype = _DTYPES[content["dtype"]]
        return torch.empty_strided(content["shape"], content["strides"], dtype=dtype, device="meta")
    return [unpacked(part) for part in content] if isinstance(content, list) else content


# ------------------------------------------------------------------------------------------------------------- op by op


def _laid_out(made: Any, like: Any) -> Any:
    """Values of one tensor in the shape and strides of another."""
    if isinstance(made, list) and isinstance(like, (list, tuple)):
        return [_laid_out(*pair) for pair in zip(made, like, strict=True)]
    if not (isinstance(made, Tensor) and isinstance(like, Tensor)) or made.numel() != like.numel():
        return made
    if made.shape == like.shape and made.stride() == like.stride():
        return made
    held = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    memory = torch.zeros(held, dtype=made.dtype, device=made.device)
    return memory.as_strided(like.shape, like.stride()).copy_(made.reshape(like.shape))


def _fit(
    spec: Spec,
    inputs: Sequence[Any],
    sizes: dict[str, int],
    dtype: torch.dtype,
    run: Callable[..., Any] | None = None,
    numbers: Sequence[int] = (),
) -> Fitted:
    """``inputs``: those that the spec's begin with, in its order. ``numbers``: positions of those that are taken as
    they are."""

    def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Any, ...]:
        made = list(spec.make_inputs(case, device, seed))
        for index, like in enumerate(inputs):
            made[index] = like if index in numbers else _laid_out(made[index], like)
        return tuple(made)

    return replace(spec, make_inputs=make_inputs, run=run or spec.run), Case("", sizes, dtype)


@cache
def _workspace(device: torch.device) -> Workspace:
    """One for all, as the engine has it."""
    return Workspace.on(device)


def _skinny_linear(
    spec: Spec,
    x: Tensor,
    weight: Tensor,
    scale: Any,
    bias: Any,
    residual: Any,
    gelu: str,
    prefetch: bool,
    norm: Any = None,
    shift: Any = None,
    eps: float = EPSILON,
    added: Any = None,
    moments: Any = None,
) -> Fitted | None:
    if (residual is not None and bias is None) or (norm is not None and eps != EPSILON):
        return None

    def run(*inputs: Any, **by: Any) -> Any:
        told = [prefetch if index == 6 else own for index, own in enumerate(inputs)]
        return spec.run(*told, workspace=_workspace(inputs[0].device), **by)

    names = {None: None, torch.int8: "int8", torch.float8_e4m3fn: "fp8"}
    quantized = QUANTIZED.index(names[None if scale is None else weight.dtype])
    sizes = {"M": prod(x.shape[:-1]), "N": len(weight), "K": x.shape[-1], "quantized": quantized}
    extra = (bias is not None) + (residual is not None) + (added is not None and norm is None)
    normed = 0 if norm is None else 1 + (added is not None)
    sizes |= {"gelu": GELU.index(gelu), "extra": extra, "norm": normed, "moments": int(moments is not None)}
    return _fit(spec, (x, weight, scale, bias, residual), sizes, x.dtype, run)


def _quantized_linear(
    spec: Spec, x: Tensor, weight: Tensor, scale: Tensor, bias: Any, residual: Any, gelu: str
) -> Fitted | None:
    if residual is not None and bias is None:
        return None
    sizes = {"M": prod(x.shape[:-1]), "N": len(weight), "K": x.shape[-1], "gelu": GELU.index(gelu)}
    sizes |= {"extra": (bias is not None) + (residual is not None), "fp8": int(weight.dtype is not torch.int8)}
    return _fit(spec, (x, weight, scale, bias, residual), sizes, x.dtype)


def _add_layer_norm(spec: Spec, x: Tensor, added: Any, bias: Any, weight: Tensor, shift: Tensor, eps: float) -> Fitted:
    sizes = {"M": prod(x.shape[:-1]), "D": x.shape[-1], "added": 1}
    own, case = _fit(spec, (x, added, bias, weight, shift), sizes, x.dtype)
    made = own.make_inputs

    def make_inputs(case: Case, device: torch.device, seed: int) -> tuple[Any, ...]:
        x, y, z, *norm = made(case, device, seed)
        return (x, None if added is None else y, None if bias is None else z, *norm)

    return replace(own, make_inputs=make_inputs), case


def _bias_gelu(spec: Spec, x: Tensor, bias: Any, form: str) -> Fitted:
    sizes = {"M": prod(x.shape[:-1]), "D": x.shape[-1], "form": FORMS.index(form), "bias": int(bias is not None)}
    return _fit(spec, (x, bias), sizes, x.dtype)


def _embed_codes(
    spec: Spec, codes: Tensor, tables: Sequence[Tensor], sources: Tensor, rows: Tensor, row: Any, mode: str
) -> Fitted:
    (B, n), (G, S), width = codes.shape, sources.shape, rows.shape[1]
    sizes = {"B": B, "G": G, "n": n, "S": S, "D": width, "K": len(tables[0]), "mode": MODES.index(mode)}
    return _fit(spec, (codes, list(tables)), sizes, rows.dtype)


def _code_features(spec: Spec, codes: Sequence[Tensor], tables: Sequence[Tensor], base: Tensor) -> Fitted:
    (B, side, _), width = codes[-1].shape, base.shape[1]
    sizes = {"B": B, "H": side, "C": width, "K": len(tables[0]), "L": len(codes)}
    return _fit(spec, (list(codes), list(tables), base), sizes, base.dtype)


def _decode_attention(
    spec: Spec, qkv: Tensor, bias: Any, keys: Tensor, values: Tensor, fixed: int, moving: Any, scales: Any = None
) -> Fitted | None:
    B, T, _, H, E = qkv.shape
    if T != 1:
        return None

    def run(qkv: Tensor, bias: Any, keys: Tensor, values: Tensor, zero: int, at: Tensor, *own: Any, **by: Any) -> Any:
        return spec.run(qkv, bias, keys, values, zero, fixed if moving is None else at, *own, **by)

    start = fixed if moving is None else keys.shape[2] - 1
    sizes = {"B": B, "H": H, "E": E, "start": start, "C": keys.shape[2], "bias": int(bias is not None)}
    return _fit(spec, (qkv, bias, keys, values), sizes | {"int8": int(scales is not None)}, qkv.dtype, run)


def _prefill_attention(spec: Spec, qkv: Tensor, bias: Any, keys: Tensor, values: Tensor, scales: Any = None) -> Fitted:
    B, T, _, H, E = qkv.shape
    sizes = {"B": B, "T": T, "H": H, "E": E, "C": keys.shape[2], "bias": int(bias is not None)}
    return _fit(spec, (qkv, bias, keys, values), sizes | {"int8": int(scales is not None)}, qkv.dtype)


def _local_attention(spec: Spec, qkv: Tensor, bias: Any, keys: Any, values: Any, start: int, mask: str) -> Fitted:
    B, T, parts, H, E = qkv.shape
    sizes = {"B": B, "T": T, "parts": parts, "H": H, "E": E, "start": start, "levels": int(mask == "levels")}
    sizes |= {"C": 0 if keys is None else keys.shape[2], "bias": int(bias is not None)}
    return _fit(spec, (qkv, bias, keys, values), sizes, qkv.dtype)


def _group_norm_silu(
    spec: Spec,
    x: Tensor,
    residual: Any,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: Any,
    form: str | None = None,
) -> Fitted | None:
    B, C, H, W = x.shape
    if H != W or not x.dtype == weight.dtype == bias.dtype:
        return None
    sizes = {"B": B, "C": C, "H": H, "G": groups, "sum": int(residual is not None), "shift": int(shift is not None)}
    sizes["form"] = FORM.index(form)
    inputs = (x, residual, weight, bias, groups, eps, silu, shift)
    return _fit(spec, inputs, sizes, x.dtype, numbers=(4, 5, 6))


def _add_maps(spec: Spec, x: Tensor, residual: Tensor, shift: Tensor) -> Fitted | None:
    B, C, H, W = x.shape
    same = H == W and shift.dtype == x.dtype
    return _fit(spec, (x, residual, shift), {"B": B, "C": C, "H": H}, x.dtype) if same else None


def _upsample_conv(spec: Spec, x: Tensor, folded: Tensor, bias: Tensor, weight: Any) -> Fitted | None:
    B, C, H, W = x.shape
    if H != W:
        return None

    def run(x: Tensor, folded: Tensor, bias: Tensor, plain: Tensor, *, backend: Any = None) -> Any:
        return ops.upsample_conv(x, folded, bias, None if weight is None else plain, backend=backend)

    return _fit(spec, (x, folded, bias, weight), {"B": B, "C": C, "H": H, "N": len(bias)}, x.dtype, run)


def _conv_bytes(spec: Spec, x: Tensor, weight: Tensor, bias: Tensor) -> Fitted | None:
    B, C, H, W = x.shape
    sizes = {"B": B, "C": C, "H": H, "N": len(bias)}
    return _fit(spec, (x, weight, bias), sizes, x.dtype) if H == W else None


def _sample_logits(spec: Spec, logits: Tensor, out: Tensor, *others: Any) -> Fitted:
    """Which filters are set is no part of the choice: a top-k of a quarter, as the published settings have it."""
    B, G, K = logits.shape

    def run(
        logits: Tensor, seeds: Tensor, step: int, at: int, heat: float, k: Any, p: Any, *, backend: Any = None
    ) -> Any:
        own = _laid_out(torch.zeros(B, G, dtype=torch.int64, device=logits.device), out)
        how: dict[str, Any] = {"temperature": heat, "top_k": k, "top_p": p, "backend": backend}
        return ops.sample_logits(logits, seeds=seeds, step=step, position=at, out=own, **how)

    return _fit(spec, (logits,), {"B": B, "G": G, "K": K, "k": max(1, K // 4), "p": 0}, logits.dtype, run)


def _winograd_conv(spec: Spec, x: Tensor, *others: Any) -> Fitted | None:
    if not others:  # whether it pays is asked of the map alone
        return None
    transformed, bias, doubled = others
    B, C, H, W = x.shape
    sizes = {"B": B, "C": C, "H": H, "W": W, "N": len(bias), "doubled": int(doubled)}
    return _fit(spec, (x, transformed, bias), sizes, x.dtype)


def _conv3x3(spec: Spec, x: Tensor, weight: Tensor, bias: Tensor, doubled: bool, span: Any) -> Fitted:
    B, C, H, W = x.shape
    sizes = {"B": B, "C": C, "H": H, "W": W, "N": len(bias), "doubled": int(doubled)}
    sizes["calibrated"] = int(span is not None)
    return _fit(spec, (x, weight, bias), sizes, x.dtype)


def _packed_linear(spec: Spec, weight: Tensor, *quantized: Tensor) -> Fitted | None:
    N, K = weight.shape
    if quantized and quantized[0].dtype is not torch.int8:
        return None
    return _fit(spec, (weight, *quantized), {"N": N, "K": K, "int8": int(bool(quantized))}, weight.dtype)


def _hierarchical_quantize(spec: Spec, z: Tensor, codebooks: Sequence[Tensor], resampler: str) -> Fitted | None:
    (B, d, H, _), sizes = z.shape, {len(codebook) for codebook in codebooks}
    if resampler != "pixel_shuffle" or len(sizes) != 1:
        return None
    return _fit(spec, (z, list(codebooks)), {"B": B, "d": d, "H": H, "K": sizes.pop(), "L": len(codebooks)}, z.dtype)


FITS: dict[str, Callable[..., Fitted | None]] = {
    "skinny_linear": _skinny_linear,
    "quantized_linear": _quantized_linear,
    "add_layer_norm": _add_layer_norm,
    "bias_gelu": _bias_gelu,
    "embed_codes": _embed_codes,
    "code_features": _code_features,
    "decode_attention": _decode_attention,
    "prefill_attention": _prefill_attention,
    "local_attention": _local_attention,
    "group_norm_silu": _group_norm_silu,
    "add_maps": _add_maps,
    "upsample_conv": _upsample_conv,
    "conv_bytes": _conv_bytes,
    "sample_logits": _sample_logits,
    "winograd_conv": _winograd_conv,
    "conv3x3": _conv3x3,
    "packed_linear": _packed_linear,
    "hierarchical_quantize": _hierarchical_quantize,
}

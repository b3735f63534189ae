"""Real cases, inputs, cost, tolerance and compilations of products of few rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.skinny_linear import BACKENDS, GELU, reference, skinny_linear, triton
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant, check_errors
from hqtvae_fast.ops.triton_launch import MULTIPROCESSORS, TRITON_NAMES

LAYERS = {"qkv": (4608, 1536), "out": (1536, 1536), "up": (6144, 1536), "down": (1536, 6144), "logits": (8192, 1536)}
NONE, EXACT, SIGMOID = range(len(GELU))
QUANTIZED = (None, *reference.QUANTIZED)
SUFFIX = ("", *(f", {name}" for name in reference.QUANTIZED))


def _case(
    name: str,
    M: int,
    layer: tuple[int, int],
    dtype: torch.dtype,
    gelu: int = NONE,
    extra: int = 0,
    quantized: int = 0,
    norm: int = 0,
) -> Case:
    """``extra``: 1 has a bias, 2 a residual too, 3 a vector that is added to that. ``quantized``: 1 is int8, 2 fp8.
    ``norm``: 1 has one, 2 a vector that is added before it."""
    sizes = {"M": M, "N": layer[0], "K": layer[1], "gelu": gelu, "extra": extra, "quantized": quantized, "norm": norm}
    return Case(name, sizes, dtype)


NORMED: tuple[tuple[str, int, int, int], ...] = (
    ("qkv", NONE, 0, 1),
    ("qkv", NONE, 0, 2),
    ("out", NONE, 2, 0),
    ("out", NONE, 3, 0),
    ("up", EXACT, 1, 1),
    ("down", NONE, 2, 0),
    ("logits", NONE, 0, 1),
)
"""Products of a block that are all of it but its attention: layer, GELU, ``extra`` and ``norm`` of a case."""


def _named(layer: str, extra: int, norm: int) -> str:
    return f"{layer}{('', '', ', residual', ', residual of a sum')[extra]}{('', ', norm', ', norm of a sum')[norm]}"


CASES = tuple(
    _case(f"S, {name}, {M} rows{SUFFIX[quantized]}", M, layer, torch.bfloat16, quantized=quantized)
    for name, layer in LAYERS.items()
    for M in (1, 8, 16)
    for quantized in range(len(SUFFIX))
) + tuple(
    _case(f"S, {_named(name, extra, norm)}, {M} rows", M, LAYERS[name], torch.bfloat16, gelu, extra, 0, norm)
    for name, gelu, extra, norm in NORMED
    for M in (1, 16)
)
SMALL_CASES = (
    _case("one part", 3, (40, 64), torch.float32),
    _case("four parts, bias and GELU", 2, (64, 256), torch.float32, EXACT, 1),
    _case("no multiples, residual, bf16", 5, (37, 300), torch.bfloat16, NONE, 2),
    _case("16 rows, fp16", 16, (32, 256), torch.float16, SIGMOID, 1),
    _case("int8", 4, (48, 300), torch.float32, EXACT, 2, 1),
    _case("int8 under bf16", 1, (33, 512), torch.bfloat16, NONE, 1, 1),
    _case("fp8", 3, (48, 300), torch.float32, EXACT, 2, 2),
    _case("fp8 under bf16", 2, (33, 512), torch.bfloat16, NONE, 1, 2),
    _case("norm, one row", 1, (40, 64), torch.float32, NONE, 0, 0, 1),
    _case("norm of a sum, no multiples, bf16", 5, (37, 300), torch.bfloat16, EXACT, 1, 0, 2),
    _case("norm, 16 rows, int8", 16, (48, 256), torch.float32, NONE, 2, 1, 1),
    _case("residual of a sum", 3, (37, 300), torch.float32, NONE, 3),
)
EPSILON = 1e-5

Inputs = tuple[Any, ...]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Outputs of about 1, as a trained layer's on normalised rows."""
    M, N, K = case["M"], case["N"], case["K"]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(M, K, generator=generator, dtype=torch.float32)
    weight = torch.randn(N, K, generator=generator, dtype=torch.float32) * K**-0.5
    bias, residual = (
        torch.randn(N, generator=generator, dtype=torch.float32),
        torch.randn(M, N, generator=generator, dtype=torch.float32),
    )
    x, bias, residual = (tensor.to(case.dtype).to(device) for tensor in (x, bias, residual))
    to = QUANTIZED[case["quantized"]]
    stored, scale = (weight.to(case.dtype), None) if to is None else reference.quantize(weight, to)
    return (
        x,
        stored.to(device),
        None if scale is None else scale.to(device),
        bias if case["extra"] >= 1 else None,
        residual if case["extra"] >= 2 else None,
        GELU[case["gelu"]],
        False,  # no prefetch: the order is that of the choice
        *_norm_inputs(case, device, generator),
    )


def _norm_inputs(case: Case, device: torch.device, generator: torch.Generator) -> tuple[Tensor | None, ...]:
    """Weight, bias, and what is added."""
    normed = case.sizes.get("norm", 0)
    sizes = (case["K"], case["K"], case["K"] if normed else case["N"])
    vectors = [torch.randn(size, generator=generator, dtype=torch.float32) for size in sizes]
    weight, shift, added = (x.to(case.dtype).to(device) for x in (1 + 0.1 * vectors[0], 0.1 * vectors[1], vectors[2]))
    there = normed == 2 or case["extra"] == 3
    return weight if normed else None, shift if normed else None, added if there else None


def run(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: Any,
    prefetch: bool = False,
    norm: Tensor | None = None,
    shift: Tensor | None = None,
    added: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    own = None if norm is None or shift is None else (norm, shift, EPSILON)
    how: dict[str, Any] = {"gelu": gelu, "prefetch": prefetch, "residual": residual, "norm": own, "added": added}
    return skinny_linear(x, weight, bias, scale=scale, backend=backend, **how)


def define(*inputs: Any) -> Tensor:
    """In float64, nothing rounded in between."""
    copies: list[Any] = [x.cpu().double() if isinstance(x, Tensor) else x for x in inputs]
    return _plain(*copies)


def _plain(*inputs: Any) -> Tensor:
    x, weight, scale, bias, residual, gelu, prefetch, norm, shift, added = inputs
    return reference.skinny_linear(x, weight, scale, bias, residual, gelu, prefetch, norm, shift, EPSILON, added)


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """Errors against float64, of the same quantized numbers where there are any, at most twice the reference's in the
    same dtype, plus 2e-6 of the largest value."""
    plain = _plain(*(x.cpu() if isinstance(x, Tensor) else x for x in inputs))
    check_errors("product", got, wanted, plain, absolute=2e-6)


def torch_modules(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: str,
    prefetch: bool,
    norm: Tensor | None,
    shift: Tensor | None,
    added: Tensor | None,
) -> Tensor:
    """As one would write it; a quantized weight is widened each time."""
    if norm is not None:
        x = F.layer_norm(x if added is None else x + added, norm.shape, norm, shift, EPSILON)
    elif added is not None and residual is not None:
        residual = residual + added
    if scale is not None:
        weight = (weight.to(torch.float32) * scale[:, None]).to(x.dtype)
    y = F.linear(x, weight, bias)
    if gelu != "none":
        y = F.gelu(y) if gelu == "exact" else y * torch.sigmoid(1.702 * y)
    return y if residual is None else y + residual


def cost(case: Case) -> Cost:
    """The weight once; rows in and out."""
    M, N, K = case["M"], case["N"], case["K"]
    weight = N * (K + 4) if case["quantized"] else N * K * case.dtype.itemsize
    return Cost(2 * M * N * K, weight + case.dtype.itemsize * (M * K + M * N * (1 + (case["extra"] >= 2))))


def variants(arch: int) -> list[Variant]:
    """The layers of S, M and L in bf16, plain and quantized; one in fp32. FFHQ's differ in the number of parts only."""
    quantized = [to for to in QUANTIZED if to != "fp8" or arch >= 89]
    layers = [(name, layer, torch.bfloat16, to) for name, layer in LAYERS.items() for to in quantized]
    layers.append(("down", LAYERS["down"], torch.float32, None))
    prefetching = (False, True) if arch >= 90 else (False,)
    made = [_compilation(*layer, arch, prefetch) for layer in layers for prefetch in prefetching]
    tiled = [layers[0], next(layer for layer in layers if layer[0] == "up" and layer[3] == "int8")]
    made += [_compilation(*layer, arch, False, tile) for tile in triton.TILES for layer in tiled]
    return made + [
        _compilation(name, LAYERS[name], torch.bfloat16, None, arch, prefetch, "", extra, norm, rows)
        for name, _, extra, norm in NORMED
        for rows in ((1, 16) if norm else (0,))
        for prefetch in prefetching
    ]


def _compilation(
    name: str,
    layer: tuple[int, int],
    dtype: torch.dtype,
    quantized: str | None,
    arch: int,
    prefetch: bool,
    tiled: str = "",
    extra: int = 0,
    norm: int = 0,
    rows: int = 0,
) -> Variant:
    from hqtvae_fast.ops.kernels.skinny_linear import triton_kernels

    N, K = layer
    x, gelu = f"*{TRITON_NAMES[dtype]}", ("exact" if name == "up" else "none")
    weight = {None: x, "int8": "*i8", "fp8": "*fp8e4nv"}[quantized]
    signature = {"x": x, "weight": weight, "scale": "*fp32", "bias": x, "residual": x, "norm": x, "shift": x}
    signature |= {"added": x, "out": x}
    signature |= {"partials": "*fp32", "counters": "*i32"} | dict.fromkeys(("M", "N", "K"), "i32")
    present = {"scale": quantized is not None, "bias": name == "up" or extra > 0, "residual": extra > 1}
    present |= {"norm": norm > 0, "shift": norm > 0, "added": norm == 2 or extra == 3}
    absent = [key for key, there in present.items() if not there]
    tile = triton.TILES[tiled] if tiled else triton.DEFAULT
    normed: dict[str, Any] = {"normed": rows, "eps": EPSILON} if norm else {}
    constants = triton.constants(N, K, dtype, gelu, tile, MULTIPROCESSORS[arch], **normed)
    constants |= {"INTERPRET": False, "TRIGGER": arch >= 90} | dict.fromkeys(absent)
    width = dtype if quantized is None else reference.QUANTIZED[quantized]
    constants["PREFETCH"] = triton.prefetched_lines(K, width, constants) if prefetch else 0
    signature = {key: type_ for key, type_ in signature.items() if key not in absent}
    aligned = tuple(key for key in signature if key != "M")
    what = f"skinny {name} {TRITON_NAMES[dtype]}{'' if quantized is None else f' {quantized}'}{tiled and f', {tiled}'}"
    if extra > 1 or norm:
        what = f"{what}, {_named('', extra, norm)[2:]}{f', {rows} rows' if norm else ''}"
    needs: tuple[str, ...] = ("mma", "async")  # a quantized tile is widened in registers on its way to the tensor cores
    if prefetch:
        what, needs = f"{what}, dependent", (*needs, "wait", "prefetch")
    kernel = triton_kernels.skinny_linear_kernel
    return Variant(what, kernel, signature, constants, aligned, tile.warps, tile.stages, needs)


SPEC = Spec(
    op="skinny_linear",
    cases=CASES,
    small=SMALL_CASES,
    make_inputs=make_inputs,
    run=run,
    reference=define,
    check=check,
    cost=cost,
    variants=variants,
    describe=triton.describe,
    backends=BACKENDS,
    baselines={"torch": torch_modules},
)

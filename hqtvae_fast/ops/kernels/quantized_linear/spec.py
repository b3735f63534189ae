"""Real cases, inputs, cost, tolerance and compilations of products of 8-bit numbers on tensor cores."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.ops.kernels.quantized_linear import BACKENDS, GELU, quantized_linear, reference, triton
from hqtvae_fast.ops.kernels.quantized_linear.torch import after_rounding
from hqtvae_fast.ops.kernels.skinny_linear.reference import quantize
from hqtvae_fast.ops.kernels.skinny_linear.spec import LAYERS
from hqtvae_fast.ops.spec import Case, Cost, Spec, Variant, check_errors
from hqtvae_fast.ops.triton_launch import TRITON_NAMES, power_of_2, row_warps

KINDS = ("int8", "fp8")
NONE, EXACT, SIGMOID = range(len(GELU))
GELU_ERROR = 2e-6
"""Of the value that GELU is taken of and of the residual, beside a rounding to the dtype."""
FP8_SUMS, FP8_SUMS_ON_A_GPU = 2.0**-20, 2.0**-10
"""Of the largest output: what fp32 sums of fp8 may be off by, and those of tensor cores, which keep fewer bits."""


def _case(
    name: str, M: int, layer: tuple[int, int], dtype: torch.dtype, gelu: int = NONE, extra: int = 0, fp8: int = 0
) -> Case:
    """``extra``: 1 has a bias, 2 a residual too."""
    sizes = {"M": M, "N": layer[0], "K": layer[1], "gelu": gelu, "extra": extra, "fp8": fp8}
    return Case(name, sizes, dtype)


CASES = tuple(
    _case(f"S, {name}, {M} rows, {kind}", M, layer, torch.bfloat16, *((EXACT, 1) if name == "up" else (NONE, 0)), fp8)
    for fp8, kind in enumerate(KINDS)
    for name, layer in LAYERS.items()
    for M in ((50, 256, 512) if kind == "int8" else (256,))
)
SMALL_CASES = (
    _case("one tile", 20, (40, 64), torch.float32),
    _case("one row of one input", 1, (3, 1), torch.float32, NONE, 1),
    _case("no multiples, bias and GELU, bf16", 37, (51, 300), torch.bfloat16, EXACT, 1),
    _case("fp8", 20, (48, 64), torch.float32, NONE, 2, 1),
    _case("fp8, no multiples, GELU, bf16", 33, (37, 530), torch.bfloat16, EXACT, 1, 1),
    _case("two tiles, residual, fp16", 17, (130, 96), torch.float16, SIGMOID, 2),
    _case("several steps, residual, bf16", 65, (72, 520), torch.bfloat16, NONE, 2),
)
Inputs = tuple[Tensor, Tensor, Tensor, "Tensor | None", "Tensor | None", str]


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Outputs of about 1, as a trained layer's on normalised rows."""
    M, N, K = case["M"], case["N"], case["K"]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(M, K, generator=generator, dtype=torch.float32)
    weight, scale = quantize(torch.randn(N, K, generator=generator, dtype=torch.float32) * K**-0.5, KINDS[case["fp8"]])
    bias, residual = (
        torch.randn(N, generator=generator, dtype=torch.float32),
        torch.randn(M, N, generator=generator, dtype=torch.float32),
    )
    x, bias, residual = (tensor.to(case.dtype).to(device) for tensor in (x, bias, residual))
    extras = bias if case["extra"] >= 1 else None, residual if case["extra"] >= 2 else None
    return (x, weight.to(device), scale.to(device), *extras, GELU[case["gelu"]])


def run(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gelu: Any,
    *,
    backend: str | None = None,
) -> Tensor:
    return quantized_linear(x, weight, scale, bias, gelu=gelu, residual=residual, backend=backend)


def _on_cpu(inputs: tuple[Any, ...]) -> list[Any]:
    return [x.cpu() if isinstance(x, Tensor) else x for x in inputs]


def define(*inputs: Any) -> Tensor:
    """Of int8 without a GELU the reference, whose bits are everybody's; else in float64 from exact sums on (a GELU's of
    what int8's scales and bias give in fp32), nothing rounded."""
    x, weight, scale, bias, residual, gelu = _on_cpu(inputs)
    if weight.dtype is torch.int8 and gelu == "none":
        return reference.quantized_linear(x, weight, scale, bias, residual, gelu)
    numbers, scales = reference.round_rows(x.reshape(-1, x.shape[-1]), weight.dtype)
    y = reference.exact_sums(numbers, weight)
    if weight.dtype is torch.int8:
        y, bias = reference.finish(y.float(), scales, scale, bias, None, "none").double(), None
        scales, scale = torch.ones_like(scales), torch.ones_like(scale)
    return reference.finish(y, scales, scale, bias, residual, gelu).reshape(*x.shape[:-1], len(weight))


def check(got: Tensor, wanted: Tensor, inputs: tuple[Any, ...]) -> None:
    """int8: the same bits; with GELU, 2e-6 of what it is taken of and a rounding to the dtype. fp8: errors against
    float64 at most twice those of exact sums rounded to the dtype before what follows and after each step of it, plus
    2^-20 of the largest output, on a GPU 2^-10."""
    x, weight, scale, bias, residual, gelu = inputs = tuple(_on_cpu(inputs))
    assert got.dtype == x.dtype, f"expected {x.dtype}; got {got.dtype}"
    assert got.shape == wanted.shape, f"expected {list(wanted.shape)}; got {list(got.shape)}"
    if weight.dtype is not torch.int8:
        rounded = define(x, weight, scale, None, None, "none").to(x.dtype)
        absolute = FP8_SUMS_ON_A_GPU if got.is_cuda else FP8_SUMS
        check_errors("product", got, wanted, after_rounding(rounded, bias, residual, gelu), absolute)
        return
    got = got.cpu()
    if gelu == "none":
        differ = int((got != wanted).sum())
        assert differ == 0, f"expected the reference's bits; {differ} of {got.numel()} differ"
        return
    before = define(x, weight, scale, bias, None, "none").double().abs()
    before = before if residual is None else before + residual.double().abs()
    allowed = GELU_ERROR * before + torch.finfo(x.dtype).eps * wanted.abs() + torch.finfo(x.dtype).tiny
    over = float(((got.double() - wanted).abs() - allowed).max())
    assert over <= 0, f"GELU: off by {over:.2e} more than the limit"


def torch_modules(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, gelu: str
) -> Tensor:
    """What 8 bits have to beat: the library's product with a wide weight, which is made anew each time."""
    y = F.linear(x, (weight.to(torch.float32) * scale[:, None]).to(x.dtype), bias)
    if gelu != "none":
        y = F.gelu(y) if gelu == "exact" else y * torch.sigmoid(1.702 * y)
    return y if residual is None else y + residual


def cost(case: Case) -> Cost:
    """The weight once, in 8 bits; rows in, once more as numbers, and out."""
    M, N, K, size = case["M"], case["N"], case["K"], case.dtype.itemsize
    extra = size * N * ((case["extra"] >= 1) + M * (case["extra"] >= 2))
    return Cost(2 * M * N * K, N * (K + 4) + size * M * (K + N) + 2 * M * K + extra)


def variants(arch: int) -> list[Variant]:
    """Rows of both widths of S, each tile as a plain product, what launches by itself with bias and GELU too, and parts
    without and with them; int8, and fp8 where there is such an instruction."""
    kinds = [dtype for dtype in reference.LARGEST if arch >= 89 or dtype is torch.int8]
    made = [_rounding(K, dtype) for dtype in kinds for K in (1536, 6144)]
    for dtype in kinds:
        for tile in triton.TILES.values():
            if divmod(arch, 10) >= tile.capability and not (tile.int8_alone and dtype is not torch.int8):
                own = tile in (triton.LARGE, triton.SMALL)
                made += [_product(tile, dtype, up) for up in ((False, True) if own else (False,))]
    parts = sorted({tile.parts for tile in triton.TILES.values()} - {1})
    return made + [_adding(count, dtype, up) for dtype in kinds for count in parts for up in (False, True)]


def _numbers(dtype: torch.dtype) -> str:
    return "*i8" if dtype is torch.int8 else "*fp8e4nv"


def _kind(dtype: torch.dtype) -> str:
    return KINDS[dtype is not torch.int8]


def _rounding(K: int, dtype: torch.dtype) -> Variant:
    from hqtvae_fast.ops.kernels.quantized_linear import triton_kernels

    signature = {"x": f"*{TRITON_NAMES[torch.bfloat16]}", "numbers": _numbers(dtype), "scales": "*fp32"}
    signature |= dict.fromkeys(("K", "stride"), "i32")
    launch = (signature, triton.rounding(K, dtype), tuple(signature), row_warps(power_of_2(K)), 3)
    name = f"rows of {K} rounded to {_kind(dtype)}"
    return Variant(name, triton_kernels.round_rows_kernel, *launch, fp_fusion=False)


def _finishing(up: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Signature and constants of what follows sums: in a block's first product of its MLP a bias, and then a GELU."""
    present = {"scales": "*fp32", "scale": "*fp32"} | ({"bias": "*bf16"} if up else {}) | {"out": "*bf16"}
    return present, {"residual": None} | ({} if up else {"bias": None})


def _product(tile: triton.Tile, dtype: torch.dtype, up: bool) -> Variant:
    from hqtvae_fast.ops.kernels.quantized_linear import triton_kernels

    own, absent = _finishing(up)
    signature = dict.fromkeys(("numbers", "weight"), _numbers(dtype)) | own
    if tile.parts > 1:
        signature["partials"] = "*i32" if dtype is torch.int8 else "*fp32"
    signature |= dict.fromkeys("MNK", "i32")
    constants = triton.constants(1536, dtype, "exact" if up else "none", tile) | absent
    constants |= {} if tile.parts > 1 else {"partials": None}
    aligned = tuple(name for name in signature if name != "M")
    name = f"8-bit product {tile.name}, {_kind(dtype)}{', bias and GELU' if up else ''}"
    launch = (signature, constants, aligned, tile.warps, tile.stages, ("mma", "async"))
    return Variant(name, triton_kernels.quantized_linear_kernel, *launch, fp_fusion=False)


def _adding(parts: int, dtype: torch.dtype, up: bool) -> Variant:
    from hqtvae_fast.ops.kernels.quantized_linear import triton_kernels

    own, absent = _finishing(up)
    signature = {"partials": "*i32" if dtype is torch.int8 else "*fp32", **own, "M": "i32", "N": "i32"}
    constants = {"PARTS": parts, "GELU": "exact" if up else "none", "BLOCK": triton.ADDED} | absent
    aligned = tuple(name for name in signature if name != "M")
    name = f"8-bit product, {parts} parts of {_kind(dtype)} added up{', bias and GELU' if up else ''}"
    launch = (signature, constants, aligned, triton.ADDING_WARPS, 3)
    return Variant(name, triton_kernels.add_parts_kernel, *launch, fp_fusion=False)


SPEC = Spec(
    op="quantized_linear",
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

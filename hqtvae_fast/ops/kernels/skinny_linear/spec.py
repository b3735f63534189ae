"""Real cases, inputs, cost, tolerance and compilations of products of few rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    moments: int = 0,
) -> Case:
    """``extra``: 1 has a bias, 2 a residual too, 3 a vector that is added to that. ``quantized``: 1 is int8, 2 fp8.
    ``norm``: 1 has one, 2 a vector that is added before it. ``moments``: 1 is told those of what it normalises, or,
    without a norm, asked for its result's."""
    sizes = {"M": M, "N": layer[0], "K": layer[1], "gelu": gelu, "extra": extra, "quantized": quantized, "norm": norm}
    return Case(name, {**sizes, "moments": moments}, dtype)


NORMED: tuple[tuple[str, int, int, int], ...] = (
    ("qkv", NONE, 0, 1),
    ("qkv", NONE, 0, 2),
    ("out", NONE, 2, 0),
    ("out", NONE, 3, 0),
    ("up", EXACT, 1, 1),
    ("down", NONE, 2, 0),
    ("logits", NONE, 0, 1),
)
"""Products of a block that are all of it but its attention: layer, GELU, ``extra`` and ``norm`` of a case. For more
than 16 rows norms are told the moments, by the products with a residual."""
STREAMED = tuple(form for form in NORMED if form[3] < 2)


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
CASES += tuple(
    _case(f"S, {name}, {M} rows{SUFFIX[quantized]}", M, layer, torch.bfloat16, quantized=quantized)
    for name, layer in LAYERS.items()
    for M, quantized in ((17, 0), (50, 0), (50, 1), (50, 2), (64, 0), (128, 0))
) + tuple(
    _case(f"S, {_named(name, extra, norm)}, {M} rows", M, LAYERS[name], torch.bfloat16, gelu, extra, 0, norm, 1)
    for name, gelu, extra, norm in STREAMED
    for M in (17, 50, 128)
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
    _case("17 rows, no multiples", 17, (70, 50), torch.float32),
    _case("50 rows, four parts, bias and GELU, bf16", 50, (70, 250), torch.bfloat16, EXACT, 1),
    _case("65 rows, int8", 65, (64, 128), torch.float32, SIGMOID, 2, 1),
    _case("128 rows, fp8 under bf16", 128, (33, 64), torch.bfloat16, NONE, 1, 2),
    _case("norm of known moments, 33 rows", 33, (70, 200), torch.float32, NONE, 0, 0, 1, 1),
    _case("norm of known moments, 17 rows, bf16", 17, (64, 192), torch.bfloat16, EXACT, 1, 0, 1, 1),
    _case("norm of a sum of known moments, int8", 20, (40, 130), torch.float32, NONE, 2, 1, 2, 1),
    _case("moments of the result, 50 rows, parts", 50, (150, 128), torch.float32, NONE, 2, 0, 0, 1),
    _case("moments of a residual of a sum, 18 rows, bf16", 18, (200, 60), torch.bfloat16, NONE, 3, 0, 0, 1),
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
        *(norm := _norm_inputs(case, device, generator)),
        _moments(case, x, norm),
    )


def _norm_inputs(case: Case, device: torch.device, generator: torch.Generator) -> tuple[Any, ...]:
    """Weight, bias, epsilon, and what is added."""
    normed = case.sizes.get("norm", 0)
    sizes = (case["K"], case["K"], case["K"] if normed else case["N"])
    vectors = [torch.randn(size, generator=generator, dtype=torch.float32) for size in sizes]
    weight, shift, added = (x.to(case.dtype).to(device) for x in (1 + 0.1 * vectors[0], 0.1 * vectors[1], vectors[2]))
    there = normed == 2 or case["extra"] == 3
    return weight if normed else None, shift if normed else None, EPSILON, added if there else None


def _moments(case: Case, x: Tensor, norm: tuple[Any, ...]) -> Tensor | None:
    """What is told, or room for what is asked for."""
    if not case.sizes.get("moments"):
        return None
    if norm[0] is not None:
        return reference.moments_of(x if norm[3] is None else x + norm[3])
    groups = -(-case["N"] // reference.MOMENTS_OF)
    return torch.zeros(2, groups, case["M"], dtype=torch.float32, device=x.device)


def derive(x: Tensor, *others: Any) -> None:
    """Moments that were told, after x was changed."""
    *_, norm, _, _, added, moments = others
    if norm is not None and moments is not None:
        moments.copy_(reference.moments_of(x if added is None else x + added))


Output = Tensor | tuple[Tensor, Tensor]


def _with_moments(y: Tensor, norm: Tensor | None, moments: Tensor | None) -> Output:
    return y if moments is None or norm is not None else (y, moments)


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
    eps: float = EPSILON,
    added: Tensor | None = None,
    moments: Tensor | None = None,
    *,
    workspace: triton.Workspace | None = None,
    backend: str | None = None,
) -> Output:
    """And the moments, where they are asked for."""
    own = None if norm is None or shift is None else (norm, shift, eps)
    how: dict[str, Any] = {"gelu": gelu, "prefetch": prefetch, "residual": residual, "norm": own, "added": added}
    how |= {"moments": moments, "workspace": workspace, "backend": backend}
    return _with_moments(skinny_linear(x, weight, bias, scale=scale, **how), norm, moments)


def define(*inputs: Any) -> Output:
    """In float64, nothing rounded in between."""
    copies: list[Any] = [x.cpu().double() if isinstance(x, Tensor) else x for x in inputs]
    return _with_moments(reference.skinny_linear(*copies), copies[7], copies[11])


def check(got: Output, wanted: Output, inputs: tuple[Any, ...]) -> None:
    """Errors against float64, of the same quantized numbers where there are any, at most twice the reference's in the
    same dtype, plus 2e-6 of the largest value. Moments are those of the result as it is."""
    copies: list[Any] = [x.cpu() if isinstance(x, Tensor) else x for x in inputs[:11]]
    y, exact = (each[0] if isinstance(each, tuple) else each for each in (got, wanted))
    check_errors("product", y, exact, reference.skinny_linear(*copies), absolute=2e-6)
    if isinstance(got, tuple):
        wide, largest = y.cpu().double(), float(y.abs().max())
        torch.testing.assert_close(got[1].cpu().double(), reference.moments_of(wide), rtol=1e-5, atol=1e-6 * largest)


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
    eps: float,
    added: Tensor | None,
    moments: Tensor | None,
) -> Tensor:
    """As one would write it; a quantized weight is widened each time, and nobody asks for moments."""
    if norm is not None:
        x = F.layer_norm(x if added is None else x + added, norm.shape, norm, shift, eps)
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


@dataclass(frozen=True)
class _Form:
    """What a compilation is of: a layer, and the rest as in a case; ``tile``: by name, "" the rule's."""

    layer: str
    rows: int = 1
    quantized: str | None = None
    dtype: torch.dtype = torch.bfloat16
    extra: int = 0
    norm: int = 0
    prefetch: bool = False
    tile: str = ""

    @property
    def name(self) -> str:
        many, own = (
            self.rows > triton.MOST_ROWS,
            _named("", self.extra, self.norm) if self.extra > 1 or self.norm else "",
        )
        quantized = "" if self.quantized is None else f" {self.quantized}"
        rows = f", {self.rows} rows" if self.norm or many else ""
        told = f"{own}{rows}{self.tile and f', {self.tile}'}{', dependent' if self.prefetch else ''}"
        return f"skinny {self.layer} {TRITON_NAMES[self.dtype]}{quantized}{told}"


def variants(arch: int) -> list[Variant]:
    """The layers of S, M and L in bf16, plain and quantized, and some in fp32; FFHQ's differ in the number of parts
    only. Rows are padded to 16, 32, 64 or 128."""
    quantized = [to for to in QUANTIZED if to is not None and (to != "fp8" or arch >= 89)]
    forms = [_Form(layer, quantized=to) for layer in LAYERS for to in (None, *quantized)]
    forms.append(_Form("down", dtype=torch.float32))
    for name, _, extra, norm in NORMED:
        forms += [_Form(name, rows, extra=extra, norm=norm) for rows in ((1, 16) if norm else (1,))]
    many = {rows: [_Form(form[0], rows, extra=form[2], norm=form[3]) for form in STREAMED] for rows in (64, 128)}
    forms += many[64]
    if arch >= 90:
        forms += [replace(form, prefetch=True) for form in forms]
    forms += many[128] + [
        _Form("qkv", 17, norm=1),
        _Form("out", 17, extra=2),
        _Form("qkv", 64),
        _Form("up", 64, extra=1),
    ]
    for to in quantized:
        forms += [_Form("qkv", 64, to, norm=1), _Form("out", 64, to, extra=2), _Form("up", 128, to, norm=1)]
    forms += [_Form("qkv", rows, dtype=torch.float32, norm=1) for rows in (64, 128)]
    for name, tile in triton.TILES.items():
        tiled = [_Form("qkv"), _Form("up", quantized="int8")] if tile.rows[0] == 1 else [many[64][0], many[64][1]]
        wide = [many[128][0], many[128][1]] if tile.out == 128 else []
        forms += [replace(form, tile=name) for form in (*tiled, *wide)]
    return [_compilation(form, arch) for form in forms]


def _compilation(form: _Form, arch: int) -> Variant:
    from hqtvae_fast.ops.kernels.skinny_linear import triton_kernels

    (N, K), many = LAYERS[form.layer], form.rows > triton.MOST_ROWS
    x, gelu = f"*{TRITON_NAMES[form.dtype]}", ("exact" if form.layer == "up" else "none")
    weight = {None: x, "int8": "*i8", "fp8": "*fp8e4nv"}[form.quantized]
    signature = {"x": x, "weight": weight, "scale": "*fp32", "bias": x, "residual": x, "norm": x, "shift": x}
    signature |= {"added": x, "out": x, "moments": "*fp32"}
    signature |= {"partials": "*fp32", "counters": "*i32"} | dict.fromkeys(("M", "N", "K"), "i32")
    normed = form.norm > 0
    present = {"scale": form.quantized is not None, "bias": form.layer == "up" or form.extra > 0}
    present |= {"residual": form.extra > 1, "norm": normed, "shift": normed, "added": form.norm == 2 or form.extra == 3}
    present |= {"moments": many and (normed or form.extra > 1)}
    absent = [key for key, there in present.items() if not there]
    tile = triton.TILES[form.tile] if form.tile else triton.tile_for(form.rows)
    eps = EPSILON if normed else None
    constants = triton.constants(form.rows, N, K, form.dtype, gelu, tile, MULTIPROCESSORS[arch], eps=eps)
    constants |= {"INTERPRET": False, "TRIGGER": arch >= 90} | dict.fromkeys(absent)
    width = form.dtype if form.quantized is None else reference.QUANTIZED[form.quantized]
    constants["PREFETCH"] = triton.prefetched_lines(K, width, constants) if form.prefetch else 0
    signature = {key: type_ for key, type_ in signature.items() if key not in absent}
    aligned = tuple(key for key in signature if key != "M")
    needs: tuple[str, ...] = ("mma", "async")  # a quantized tile is widened in registers on its way to the tensor cores
    if form.prefetch:
        needs = (*needs, "wait", "prefetch")
    kernel, warps = triton_kernels.skinny_linear_kernel, triton.warps_for(form.rows, form.dtype, tile)
    return Variant(form.name, kernel, signature, constants, aligned, warps, tile.stages, needs)


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
    derive=derive,
)

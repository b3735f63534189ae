"""A product with a large weight and what follows it, made for few rows: a sampling step's, up to a batch of 128."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, float32, ops

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.skinny_linear import reference, torch, triton
from hqtvae_fast.ops.kernels.skinny_linear.triton import Workspace
from hqtvae_fast.ops.operator import dispatched

GeluForm = Literal["none", "exact", "sigmoid"]
Norm = tuple[Tensor, Tensor, float]
GELU: tuple[GeluForm, ...] = ("none", "exact", "sigmoid")


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    gelu: GeluForm = "none",
    residual: Tensor | None = None,
    norm: Norm | None = None,
    added: Tensor | None = None,
    moments: Tensor | None = None,
    prefetch: bool = False,
    workspace: Workspace | None = None,
    backend: str | None = None,
) -> Tensor:
    """gelu(x @ (weight * scale)^T + bias) + residual, [..., N] in x's dtype; with ``norm`` of LayerNorm(x).

    ``x`` [..., K], floating point; ``weight`` [N, K] of the same dtype, or int8 or fp8 (e4m3) with ``scale`` fp32 [N],
    one factor an output (:func:`reference.quantize`; rounding all layers of the demo model moves its logits by a KL of
    1.1e-3 nats at most as int8 and 1.4e-2 as fp8, which has three bits after the leading one, where computing in bf16
    moves them by 4e-4: ``hqtvae bench precision``); ``bias`` [N] and ``residual`` [..., N] as x, or None; ``gelu``:
    "none", "exact" or "sigmoid". ``norm``: a LayerNorm's weight [K] and bias [K], as x, and epsilon. ``added``, as x:
    [K], added to x before the norm; without one [N], added to the residual. ``moments``, fp32 [2, ceil(D / 64), rows]:
    means and sums of squared deviations of each 64 values of rows [..., D]. With ``norm`` those of what it normalises,
    taken on trust; without one they are written, of the result: so a product tells the norm of the next one.

    No gradient. The same every time, bit for bit: sums are added in an order that depends on N, K, the variant
    ("triton" has one for up to 16 rows and one for more) and how many multiprocessors the GPU has, not on the rows
    beside one nor on what runs when ("torch": on what the library chooses for so many rows). Sums are fp32; fp32 inputs
    are multiplied as three TF32 products (an error of 2^-21 of a product). ``workspace`` (None: one is made, which
    costs a launch) may serve all products that follow each other on one stream. ``prefetch``: fetch the weight while
    the kernel before this one still runs, by a dependent launch (only Triton, only from compute capability 9.0 on).

    ``backend``: "triton" (CUDA, 1 to 128 rows, a norm of more than 16 only with ``moments``; fp8 from compute
    capability 8.9 on), "triton/32x4" and other tiles (outputs x programs for each multiprocessor; some for up to 16
    rows, the others for more), "torch" (anywhere, any number of rows: the library's product) or "reference" (likewise,
    rounded once after the product). Raises ValueError on other shapes or dtypes.
    """
    if x.shape[-1:] != weight.shape[1:] or weight.ndim != 2:
        raise ValueError(f"x and weight: expected [..., K] and [N, K]; got {list(x.shape)} and {list(weight.shape)}")
    N, quantized = len(weight), weight.dtype in reference.QUANTIZED.values()
    if quantized != (scale is not None) or not (quantized or weight.dtype == x.dtype):
        raise ValueError(f"weight: expected {x.dtype}, or int8 or fp8 and a scale; got {weight.dtype}")
    if scale is not None and (tuple(scale.shape) != (N,) or scale.dtype != float32):
        raise ValueError(f"scale: expected torch.float32 [{N}]; got {scale.dtype} {list(scale.shape)}")
    for name, extra, shape in (("bias", bias, (N,)), ("residual", residual, (*x.shape[:-1], N))):
        if extra is not None and (tuple(extra.shape) != shape or extra.dtype != x.dtype):
            raise ValueError(f"{name}: expected {x.dtype} {list(shape)}; got {extra.dtype} {list(extra.shape)}")
    if gelu not in GELU:
        raise ValueError(f"gelu: expected one of {', '.join(GELU)}; got {gelu!r}")
    _check_norm(x, residual, norm, added, N)
    _check_moments(x, moments, N if norm is None else x.shape[-1])
    more = (None, None, 0.0, added, moments) if norm is None else (*norm, added, moments)
    inputs = (x, weight, scale, bias, residual, gelu, prefetch)
    told = inputs if norm is None and added is None and moments is None else (*inputs, *more)
    choice = choose("skinny_linear", BACKENDS, *told, backend=backend)
    work = Workspace.on(x.device) if workspace is None else workspace
    return ops.hqtvae_fast.skinny_linear(*inputs, *more, work.partials, work.counters, choice.backend.name)


def _check_norm(x: Tensor, residual: Tensor | None, norm: Norm | None, added: Tensor | None, N: int) -> None:
    K = x.shape[-1]
    for name, vector, size in (
        ("norm", None if norm is None else norm[0], K),
        ("norm's bias", None if norm is None else norm[1], K),
        ("added", added, N if norm is None else K),
    ):
        if vector is not None and (tuple(vector.shape) != (size,) or vector.dtype != x.dtype):
            raise ValueError(f"{name}: expected {x.dtype} [{size}]; got {vector.dtype} {list(vector.shape)}")
    if added is not None and norm is None and residual is None:
        raise ValueError("added: expected a norm or a residual to go with it; got neither")


def _check_moments(x: Tensor, moments: Tensor | None, D: int) -> None:
    shape = (2, -(-D // reference.MOMENTS_OF), x.numel() // x.shape[-1])
    if moments is None or (tuple(moments.shape) == shape and moments.dtype == float32 and moments.is_contiguous()):
        return
    got = f"{moments.dtype} {list(moments.shape)}"
    raise ValueError(f"moments: expected contiguous torch.float32 {list(shape)}; got {got}")


BACKENDS = (
    *with_tiles("triton", triton.skinny_linear, triton.why_not, triton.TILES),
    Backend("torch", torch.skinny_linear),
    Backend("reference", reference.skinny_linear),
)


@dispatched("skinny_linear", BACKENDS, mutates_args=("moments", "partials", "counters"))
def _skinny_linear(
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
    partials: Tensor,
    counters: Tensor,
    backend: str,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))

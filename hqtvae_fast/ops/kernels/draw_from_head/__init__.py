"""Drawing codes straight from what the prediction head reads, its logits never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.draw_from_head import reference, triton, unfused
from hqtvae_fast.ops.kernels.sample_logits import check_sampling
from hqtvae_fast.ops.operator import dispatched


def draw_from_head(
    x: Tensor,
    weight: Tensor,
    *,
    temperature: Tensor | float = 1.0,
    seeds: Tensor,
    step: Tensor | int,
    position: Tensor | int,
    out: Tensor | None = None,
    invalid: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw one code a row from softmax(x weight^T / temperature): no top-k, no top-p.

    ``x`` [B, D], or [B, G, D] for the positions ``position``, ``position`` + 1, ... of each of B images; ``weight``
    [K, D] of the same dtype (fp32, bf16, fp16); the rest as for :func:`hqtvae_fast.ops.sample_logits`, and so is the
    noise, bit for bit. Returns int64 [B] or [B, G], in ``out`` if that is given (any strides).

    The codes are those that ``sample_logits`` draws from ``F.linear(x, weight)``, in that dtype, but where two scores
    come so near that the order in which the products are summed decides.

    ``backend``: "triton" (CUDA; a kernel over tiles of the product and one that settles), "unfused" (anywhere: the
    product, then the draw by its own order) or "reference". Raises ValueError on shapes, on parameters out of range,
    and on NaN logits on the CPU; elsewhere a row with NaN gives an unspecified index within [0, K), and sets
    ``invalid``, a bool scalar there, without a synchronisation.
    """
    if x.ndim not in (2, 3) or weight.ndim != 2 or weight.shape[1] != x.shape[-1] or weight.dtype != x.dtype:
        found = f"{x.dtype} {list(x.shape)} and {weight.dtype} {list(weight.shape)}"
        raise ValueError(f"x, weight: expected [B, D] or [B, G, D], and [K, D] of the same dtype; got {found}")
    if tuple(seeds.shape) != (x.shape[0],):
        raise ValueError(f"seeds: expected [{x.shape[0]}]; got {list(seeds.shape)}")
    check_sampling(1.0 if isinstance(temperature, Tensor) else temperature, None, None, weight.shape[0])
    out = x.new_empty(x.shape[:-1], dtype=torch.int64) if out is None else out
    if out.shape != x.shape[:-1] or out.dtype != torch.int64:
        raise ValueError(f"out: expected int64 {list(x.shape[:-1])}; got {out.dtype} {list(out.shape)}")
    device = x.device
    invalid = torch.zeros((), dtype=torch.bool, device=device) if invalid is None else invalid
    grouped_BG, x_BGD = (out, x) if x.ndim == 3 else (out[:, None], x[:, None])
    numbers = ((step, torch.int64), (position, torch.int64), (temperature, torch.float32))
    scalars = [v if isinstance(v, Tensor) else torch.full((), v, dtype=kind, device=device) for v, kind in numbers]
    inputs = (x_BGD, weight, grouped_BG, invalid, seeds, *scalars)
    choice = choose("draw_from_head", BACKENDS, *inputs, backend=backend)
    torch.ops.hqtvae_fast.draw_from_head(*inputs, choice.backend.name)
    if device.type == "cpu" and bool(invalid):
        raise ValueError("x, weight: expected a product without NaN, got NaN logits")
    return out


BACKENDS = (
    *with_tiles("triton", triton.draw_from_head, triton.why_not, triton.TILES),
    Backend("unfused", unfused.draw_from_head),
    Backend("reference", reference.draw_from_head),
)


@dispatched("draw_from_head", BACKENDS, mutates_args=("out", "invalid"))
def _draw(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    invalid: Tensor,
    seeds: Tensor,
    step: Tensor,
    position: Tensor,
    temperature: Tensor,
    backend: str,
) -> None:
    return None


__all__ = ["draw_from_head"]

"""Drawing codes from logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, arange, float32, full, int64, ops, zeros
from torch import bool as boolean
from torch import device as Device
from torch import dtype as DType

from hqtvae_fast import _cuda
from hqtvae_fast.arguments import integer, real
from hqtvae_fast.backend import Backend, choose, with_tiles
from hqtvae_fast.ops.kernels.sample_logits import cpu, cuda, reference, torch, triton
from hqtvae_fast.ops.operator import dispatched

COLDEST, HOTTEST = 1e-30, 1e30
"""Temperatures, for every backend. Logits up to 1e8 over the coldest are finite in fp32, and two different ones lie
further apart than any noise: the largest is drawn. Below, quotients overflow, and all above 0 are one infinity."""


def check_temperature(temperature: Any) -> None:
    """ValueError unless it is within [COLDEST, HOTTEST]."""
    wanted = f"a number from {COLDEST} to {HOTTEST} (top_k=1 draws the likeliest code)"
    if not COLDEST <= real("temperature", temperature, wanted) <= HOTTEST:
        raise ValueError(f"temperature: expected {wanted}; got {temperature}")


STRONGEST = 100.0
"""The largest scale of guidance: far above any of use."""


def check_guidance(scale: Any) -> None:
    """ValueError unless it is a number from 0 to STRONGEST."""
    wanted = f"numbers from 0 to {STRONGEST:g} (1: no guidance)"
    if not 0 <= real("guidance", scale, wanted) <= STRONGEST:
        raise ValueError(f"guidance: expected {wanted}; got {scale}")


def check_sampling(temperature: Any, top_k: Any, top_p: Any, num_codes: int) -> None:
    """ValueError unless the temperature is in range, 1 <= k <= K and 0 < p <= 1 (None switches a filter off)."""
    check_temperature(temperature)
    if top_k is not None:
        integer("top_k", top_k, 1, num_codes, also=", or None")
    wanted = "a number in (0, 1], or None"
    if top_p is not None and not 0 < real("top_p", top_p, wanted) <= 1:
        raise ValueError(f"top_p: expected {wanted}; got {top_p}")


def sample_logits(
    logits: Tensor,
    *,
    temperature: Tensor | float = 1.0,
    top_k: Tensor | int | None = None,
    top_p: Tensor | float | None = None,
    seeds: Tensor,
    step: Tensor | int,
    position: Tensor | int,
    guidance: Tensor | float | None = None,
    out: Tensor | None = None,
    invalid: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw one index from each row of logits.

    ``logits`` [B, K], or [B, G, K] for the positions ``position``, ``position`` + 1, ... of each of B images, floating
    point; ``seeds`` int64 [B]; ``step`` and ``position`` integers or int64 [] or [B]. Returns int64 [B] or [B, G], in
    ``out`` if that is given (any strides). Logits over temperature, then top-k (ties at the k-th value stay), softmax,
    top-p (up to and including the entry at which the cumulative sum reaches p; 1 drops nothing), then a draw with noise
    that depends on (seed, step, position, index) alone. ``top_k=1`` is argmax, ties to the lowest index.

    ``guidance``: the scale s of classifier-free guidance, from 0 to 100, one or fp32 [B]. Then there are 2 B rows of
    logits: c, with B conditions shown, and behind them u, with these withheld. Drawn is from u + s (c - u) in fp32, to
    which temperature and filters apply, with the noise of B images; the code of an image stands in both of its rows.
    Scale 1 is c, bit for bit.

    ``temperature`` (fp32, from 1e-30 to 1e30), ``top_k`` (int64), ``top_p`` and ``guidance`` (fp32) may be scalars on
    the device of the logits, as may ``step``: then they are read there, when the draw is made, and are the caller's to
    check.

    ``backend``: "triton" (CUDA; one kernel), "triton/8-warps" and other tiles, "cuda" (likewise, from csrc/cuda; only
    by name), "cpu", "torch" (anywhere: the reference's codes, without waiting for a GPU) or "reference" (anywhere;
    waits for a GPU). Raises ValueError on parameters out of range, and on NaN logits on the CPU; on other devices a row
    with NaN gives an unspecified index within [0, K), and sets ``invalid``, a bool scalar there, without a
    synchronisation; so does, everywhere, a guided row of which one logit alone is infinite.
    """
    if logits.ndim not in (2, 3):
        raise ValueError(f"logits: expected [B, K] or [B, G, K]; got {list(logits.shape)}")
    images = _images(logits, guidance)
    if tuple(seeds.shape) != (images,):
        raise ValueError(f"seeds: expected [{images}]; got {list(seeds.shape)}")
    _check_numbers(temperature, top_k, top_p, logits.shape[-1])
    if logits.device.type == "cpu":
        _refuse_nan(logits)
    out = logits.new_empty(logits.shape[:-1], dtype=int64) if out is None else out
    if out.shape != logits.shape[:-1] or out.dtype != int64:
        raise ValueError(f"out: expected int64 {list(logits.shape[:-1])}; got {out.dtype} {list(out.shape)}")
    grouped_BG, logits_BGK = (out, logits) if logits.ndim == 3 else (out[:, None], logits[:, None])
    device = logits.device
    inputs = (
        logits_BGK,
        grouped_BG,
        zeros((), dtype=boolean, device=device) if invalid is None else invalid,
        seeds,
        _scalar(step, int64, device),
        _scalar(position, int64, device),
        _scalar(temperature, float32, device),
        _scalar(logits.shape[-1] if top_k is None else top_k, int64, device),
        _scalar(1.0 if top_p is None else top_p, float32, device),
        None if guidance is None else _scalar(guidance, float32, device),
    )
    choice = choose("sample_logits", BACKENDS, *inputs, backend=backend)
    if device.type == "cpu" and choice.backend.name in ("cpu", "reference"):
        # Plain operators of torch, which need no other around them; NaN has been refused.
        choice.backend.run(logits_BGK, grouped_BG, None if guidance is None else inputs[2], *inputs[3:])
        return out
    ops.hqtvae_fast.sample_logits(*inputs, choice.backend.name)
    return out


def _images(logits: Tensor, guidance: Tensor | float | None) -> int:
    """Of so many rows; ValueError where guidance has not two of each."""
    rows = logits.shape[0]
    if guidance is None:
        return rows
    if rows % 2:
        raise ValueError(f"logits: expected two rows of each image with guidance; got {rows}")
    if not isinstance(guidance, Tensor):
        check_guidance(guidance)
    elif guidance.dtype != float32 or guidance.shape not in ((), (rows // 2,)):
        got = f"{guidance.dtype} {list(guidance.shape)}"
        raise ValueError(f"guidance: expected float32 [] or [{rows // 2}]; got {got}")
    return rows // 2


def _check_numbers(
    temperature: Tensor | float, top_k: Tensor | int | None, top_p: Tensor | float | None, num_codes: int
) -> None:
    check_sampling(
        1.0 if isinstance(temperature, Tensor) else temperature,
        None if isinstance(top_k, Tensor) else top_k,
        None if isinstance(top_p, Tensor) else top_p,
        num_codes,
    )


def _refuse_nan(logits: Tensor) -> None:
    wrong = logits.amax(dim=-1).isnan().flatten()  # a maximum carries NaN on
    if bool(wrong.any()):
        raise ValueError(f"logits: expected numbers, got NaN in row {int(wrong.nonzero()[0])}")


def _scalar(value: Tensor | float, dtype: DType, device: Device) -> Tensor:
    return value if isinstance(value, Tensor) else full((), value, dtype=dtype, device=device)


def _by_rows(draw: Callable[..., Tensor], *, reads: bool = True) -> Callable[..., None]:
    """A draw of rows [M, K], as the operator is called. ``reads``: it is given plain numbers, and on a GPU reading them
    waits for it; else scalars on the device. ``invalid`` None: nobody asks."""

    @functools.wraps(draw)
    def run(
        logits_BGK: Tensor,
        out_BG: Tensor,
        invalid: Tensor | None,
        seeds_B: Tensor,
        step: Tensor,
        position: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        guidance: Tensor | None = None,
    ) -> None:
        if guidance is not None:
            shown, withheld = logits_BGK.chunk(2)
            logits_BGK = reference.guided_logits(shown, withheld, guidance.view(-1, 1, 1))
            out_BG = out_BG.unflatten(0, (2, len(shown)))  # both of an image's rows
        B, G, K = logits_BGK.shape
        if invalid is not None:
            invalid |= logits_BGK.amax(dim=2).isnan().any()
        rows = (seeds_B, step.expand(B), position.expand(B))
        if G > 1:
            seeds_M, steps_M, firsts_M = (row.repeat_interleave(G) for row in rows)
            rows = (seeds_M, steps_M, firsts_M + arange(G, dtype=int64, device=seeds_B.device).repeat(B))
        filters: tuple[Any, Any] = (top_k, top_p)
        if reads:
            k, p = int(top_k), float(top_p)
            filters = (k if k < K else None, p if p < 1 else None)
        out_BG.copy_(draw(logits_BGK.reshape(B * G, K), temperature, *filters, *rows).view(B, G))

    return run


BACKENDS = (
    Backend("cuda", cuda.sample_logits, cuda.why_not, _cuda.origin, only_by_name=True),
    *with_tiles("triton", triton.sample_logits, triton.why_not, triton.TILES),
    Backend("cpu", _by_rows(cpu.sample_logits), cpu.why_not),
    Backend("torch", _by_rows(torch.sample_logits, reads=False)),
    Backend("reference", _by_rows(reference.sample_logits)),
)


@dispatched("sample_logits", BACKENDS, mutates_args=("out", "invalid"))
def _draw(
    logits: Tensor,
    out: Tensor,
    invalid: Tensor,
    seeds: Tensor,
    step: Tensor,
    position: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    guidance: Tensor | None,
    backend: str,
) -> None:
    return None


__all__ = [
    "COLDEST",
    "HOTTEST",
    "STRONGEST",
    "check_guidance",
    "check_sampling",
    "check_temperature",
    "sample_logits",
]

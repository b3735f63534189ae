"""Launching the CUDA kernel of the draw (csrc/cuda/sample_logits.cu)."""

from __future__ import annotations

from torch import Tensor

from hqtvae_fast import _cuda
from hqtvae_fast.ops.triton_launch import DTYPES

MOST_CODES = 1 << 15
"""Rows stand in shared memory as fp32: 128 KB, of the 163 KB that a block may have on an A100."""


def why_not(logits_BGK: Tensor, *others: Tensor) -> str | None:
    """None where the kernel can take these logits, else the reason."""
    if logits_BGK.shape[-1] > MOST_CODES:
        return f"expected at most {MOST_CODES} codes; got {logits_BGK.shape[-1]}"
    if logits_BGK.dtype not in DTYPES:
        return f"expected fp32, bf16 or fp16; got {logits_BGK.dtype}"
    return _cuda.why_not(logits_BGK)


def sample_logits(
    logits_BGK: Tensor,
    out_BG: Tensor,
    invalid: Tensor,
    seeds_B: Tensor,
    step: Tensor,
    position: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    guidance: Tensor | None = None,
) -> None:
    """As the operator; see :func:`hqtvae_fast.ops.sample_logits`."""
    B = len(seeds_B)
    logits_BGK = logits_BGK if logits_BGK.stride(2) == 1 else logits_BGK.contiguous()
    rows = (seeds_B.contiguous(), step.expand(B), position.expand(B))
    _cuda.operator("sample_logits")(
        *(logits_BGK, out_BG, invalid, *rows, temperature, top_k, top_p),
        None if guidance is None else guidance.expand(B),
    )

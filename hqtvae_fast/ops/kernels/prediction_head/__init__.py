"""The prediction head's two passes and both draws of one step (eq. 11-14)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast import _cuda
from hqtvae_fast.backend import Backend, choose
from hqtvae_fast.ops.kernels.prediction_head import cuda, reference, table
from hqtvae_fast.ops.kernels.prediction_head.table import HeadTable
from hqtvae_fast.ops.kernels.prediction_head.weights import LEVELS, POSITIONS, BlockWeights, HeadWeights, LevelWeights
from hqtvae_fast.ops.operator import operator

GELU = ("exact", "sigmoid")


@dataclass(frozen=True)
class PredictionHead:
    """A head that draws one step's five codes: made once, called for each step.

    ``made``: what the CUDA kernel reads and works in, or None where another backend runs. ``dependent``: the kernel may
    start, and fetch weights, while the one before it still runs (compute capability 9.0 or above, the compiled
    extension): that one must not be what wrote them. "cuda" cannot run where that is not possible.
    """

    weights: HeadWeights
    num_heads: int
    gelu: str
    made: HeadTable | None
    dependent: bool = False

    @classmethod
    def of(
        cls, weights: HeadWeights, num_heads: int, gelu: str = "exact", *, dependent: bool = False
    ) -> PredictionHead:
        if gelu not in GELU:
            raise ValueError(f"gelu: expected one of {', '.join(GELU)}; got {gelu!r}")
        if len(weights.start) % num_heads != 0:
            raise ValueError(f"num_heads: expected a divisor of {len(weights.start)}; got {num_heads}")
        able = weights.start.is_cuda and table.why_not(weights, num_heads) is None and _cuda.load()[0] is not None
        return cls(weights, num_heads, gelu, HeadTable.of(weights, num_heads, gelu) if able else None, dependent)

    def __call__(
        self,
        h: Tensor,
        codes: Tensor,
        *,
        seeds: Tensor,
        step: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        invalid: Tensor | None = None,
        draw_top: bool = True,
        backend: str | None = None,
    ) -> Tensor:
        """Draw each image's top code, then its four bottom codes, into ``codes`` int64 [B, 5], which is returned.

        ``h`` [B, D], the body's output, in the weights' dtype; ``seeds`` int64 [B]; ``step`` int64 []; ``temperature``
        fp32, ``top_k`` int64 and ``top_p`` fp32, [2]: one a level, read on the device; K or more, and 1 or more, filter
        nothing. ``draw_top``: False keeps the top codes that ``codes`` holds. The draws are those of
        :func:`hqtvae_fast.ops.sample_logits` at positions 0 and 1-4; NaN sets ``invalid``, a bool scalar. Nothing is
        allocated and nothing waits for the device with "cuda". Raises ValueError on other shapes and dtypes.

        ``backend``: "cuda" (1 to 16 images, bf16; matrices in bf16, or all in int8 or fp8; one persistent kernel; only
        by name) or "reference" (anywhere).
        """
        B, device = len(h), h.device
        wanted = {
            "h": (h, self.weights.start.dtype, (B, len(self.weights.start))),
            "codes": (codes, torch.int64, (B, POSITIONS)),
            "seeds": (seeds, torch.int64, (B,)),
            "step": (step, torch.int64, ()),
            "temperature": (temperature, torch.float32, (LEVELS,)),
            "top_k": (top_k, torch.int64, (LEVELS,)),
            "top_p": (top_p, torch.float32, (LEVELS,)),
        }
        for name, (tensor, dtype, shape) in wanted.items():
            if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device != device:
                got = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
                raise ValueError(f"{name}: expected {dtype} {list(shape)} on {device}; got {got}")
        invalid = torch.zeros((), dtype=torch.bool, device=device) if invalid is None else invalid
        inputs = (h, codes, invalid, seeds, step, temperature, top_k, top_p)
        choice = choose("prediction_head", BACKENDS, *inputs, self, draw_top, backend=backend)
        made = self.made
        memory = (None, None, None) if made is None else (made.table, made.buffer, made.barrier)
        tensors = list(self.weights.named().values())
        options = (self.num_heads, self.gelu, draw_top, "" if made is None else made.stored, self.dependent)
        torch.ops.hqtvae_fast.prediction_head(*inputs, tensors, *options, *memory, choice.backend.name)
        return codes


BACKENDS = (
    Backend("cuda", cuda.launch, cuda.why_not, _cuda.origin, only_by_name=True),
    Backend("reference", reference.prediction_head),
)


@operator("prediction_head", mutates_args=("codes", "invalid", "table_buffer", "table_barrier"))
def _prediction_head(
    h: Tensor,
    codes: Tensor,
    invalid: Tensor,
    seeds: Tensor,
    step: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    weights: Sequence[Tensor | None],
    num_heads: int,
    gelu: str,
    draw_top: bool,
    stored: str,
    dependent: bool,
    table_fields: Tensor | None,
    table_buffer: Tensor | None,
    table_barrier: Tensor | None,
    backend: str,
) -> None:
    inputs = (h, codes, invalid, seeds, step, temperature, top_k, top_p)
    if backend == "reference":
        reference.prediction_head(*inputs, HeadWeights.of(weights), num_heads, gelu, draw_top)
    else:
        assert table_fields is not None
        cuda.launch(table_fields, *inputs, draw_top, stored, dependent)


@_prediction_head.register_fake
def _(
    h: Tensor,
    codes: Tensor,
    invalid: Tensor,
    seeds: Tensor,
    step: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    weights: Sequence[Tensor | None],
    num_heads: int,
    gelu: str,
    draw_top: bool,
    stored: str,
    dependent: bool,
    table_fields: Tensor | None,
    table_buffer: Tensor | None,
    table_barrier: Tensor | None,
    backend: str,
) -> None:
    return None


__all__ = ["BlockWeights", "HeadWeights", "LevelWeights", "PredictionHead"]

"""The head's passes and draws of a step as one operation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from hqtvae_fast.backend import BackendError, asked_for
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.head import PyramidHead, head_weights
from hqtvae_fast.model.prepared import ALTERED
from hqtvae_fast.ops.kernels.prediction_head import PredictionHead
from hqtvae_fast.ops.kernels.prediction_head.table import MOST_IMAGES

HEAD_OP, HEAD_BACKEND = "prediction_head", "cuda"


@dataclass(frozen=True)
class WholeHead:
    """Both passes and draws of a step as one operation, where that was asked for: by the engine's option, or by
    HQTVAE_BACKEND=prediction_head=cuda. Reads the model's parameters in place."""

    head: PredictionHead

    @classmethod
    def if_asked_for(
        cls, model: HQTransformer, batch: int, options: EngineOptions | None = None, *, unlike: Sequence[str] = ()
    ) -> WholeHead | None:
        """None unless it is asked for. Where the model or batch do not fit: a BackendError if the environment asks, a
        warning and None if the option does. With a dependent launch it fetches weights while the body's last kernel
        still runs, see :class:`PredictionHead`. ``unlike``: what the drawing has that one operation has not."""
        options, demanded = options or EngineOptions(), asked_for(HEAD_OP) == HEAD_BACKEND
        if not (demanded or options.whole_head):
            return None
        reason, altered = why_no_whole_head(model.config, batch), model.altered()
        if unlike:
            reason = f"expected a plain drawing; got one with {' and '.join(unlike)}"
        if altered is not None:
            reason = f"{altered} {ALTERED}"
        if reason is not None and not demanded:
            warnings.warn(f"engine: whole_head cannot run: {reason}: drawing without it", stacklevel=2)
            return None
        if reason is not None:
            raise BackendError(f"{HEAD_OP}: backend {HEAD_BACKEND!r} was asked for and cannot run: {reason}")
        config = model.config.head
        weights = head_weights(cast(PyramidHead, model.head))
        return cls(PredictionHead.of(weights, config.num_heads, config.gelu, dependent=options.dependent_launch))

    def __call__(self, h_BD: Tensor, local_BN: Tensor, *, keep_top: bool, **how: Tensor) -> None:
        """``how``: seeds, step and filters of every level, as the operation takes them."""
        self.head(h_BD.contiguous(), local_BN, draw_top=not keep_top, backend=HEAD_BACKEND, **how)


def why_no_whole_head(config: TransformerConfig, batch: int) -> str | None:
    """None where one operation is this model's head, else the reason."""
    if config.decoding != "hierarchical" or config.num_levels != 2:
        return f"expected hierarchical decoding over two levels; got {config.decoding} over {config.num_levels}"
    if config.head.num_layers == 0:
        return "expected blocks in the head; got none"
    if batch > MOST_IMAGES:
        return f"expected at most {MOST_IMAGES} images; got {batch}"
    return None

"""One step of a drawing: the body at one position, then the head's groups. What the loop drives.

The model's own modules are the readable form (:class:`ReferenceStep`); the kernels' is in
:mod:`hqtvae_fast.engine.fused_step`; :class:`WholeHead` is the head and its draws as one operation.

Shapes: B images, T steps, n local positions, G positions of a group, D width, K codes of a level.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from hqtvae_fast.backend import BackendError, asked_for
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine.cache import KVCache, make_caches
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.head import PyramidHead, head_weights, split_group
from hqtvae_fast.model.prepared import ALTERED
from hqtvae_fast.ops.kernels.prediction_head import PredictionHead
from hqtvae_fast.ops.kernels.prediction_head.table import MOST_IMAGES


@dataclass(frozen=True)
class LevelLogits:
    """Logits [B, G, K] of the local positions ``first`` .. ``first`` + G - 1, all of ``level``."""

    level: int
    first: int
    logits: Tensor


@dataclass(frozen=True)
class LevelFeatures:
    """What the head reads in their place, x [B, G, D] and its weight [K, D], for a draw that makes the product."""

    level: int
    first: int
    x: Tensor
    weight: Tensor


class Step(Protocol):
    """Runs a model step by step for one batch; its caches are allocated when it is made."""

    caches: tuple[KVCache, KVCache]

    def body(self, step: int, condition: Tensor | None, local_BTN: Tensor) -> Tensor:
        """MT at ``step`` (called for 0, 1, ...), which reads the codes drawn at the one before: h [B, D]."""

    def head(self, h_BD: Tensor, local_BN: Tensor, group: range) -> Sequence[LevelLogits | LevelFeatures]:
        """PHT over a group, called in drawing order; reads the codes of earlier groups."""

    def skip(self, h_BD: Tensor) -> None:
        """PHT over position 0 when its code is given: only what later groups see of it."""


class ReferenceStep:
    """The model's own modules, as they read in :mod:`hqtvae_fast.model`, with caches."""

    def __init__(self, model: HQTransformer, batch: int) -> None:
        self.model, self.batch = model, batch
        self.caches = make_caches(model, batch)

    def body(self, step: int, condition: Tensor | None, local_BTN: Tensor) -> Tensor:
        model, (cache, head_cache) = self.model, self.caches
        if step == 0:
            x_BSD = model.prefix(condition, self.batch)
        else:
            x_BSD = model.embedding(local_BTN[:, step - 1 : step], range(step - 1, step))
        head_cache.reset()
        return model.run_body(x_BSD, cache)[:, -1]

    def head(self, h_BD: Tensor, local_BN: Tensor, group: range) -> Sequence[LevelLogits]:
        logits = self.model.head.draw(h_BD, local_BN, group, self.caches[1])
        parts = split_group(self.model.config, group)
        return [LevelLogits(part.level, part.positions.start, x) for part, x in zip(parts, logits, strict=True)]

    def skip(self, h_BD: Tensor) -> None:
        self.model.head.skip(h_BD, self.caches[1])


# -------------------------------------------------------------------------------------------------------- whole head

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

"""One step of a drawing: the body at one position, then the head's groups. What the loop drives.

The model's own modules are the readable form (:class:`ReferenceStep`); the kernels' is in
:mod:`hqtvae_fast.engine.fused_step`, and of the head alone in :mod:`hqtvae_fast.engine.whole_head`.

Shapes: B images, T steps, n local positions, G positions of a group, D width, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hqtvae_fast.engine.cache import KVCache, make_caches
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.head import split_group


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

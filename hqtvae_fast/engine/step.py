"""One step of a drawing: the body at one position, then the head's groups. What the loop drives, and its readable form.

Shapes: B images, T steps, n local positions, G positions of a group, D width, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from hqtvae_fast.engine.cache import KVCache
from hqtvae_fast.engine.tables import StepTables
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.layers import Blocks

Engine = Literal["fused", "reference"]
ENGINES: tuple[Engine, ...] = ("fused", "reference")


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


@dataclass(frozen=True)
class StepOptions:
    """What the fused step has and the model's modules have not. ``tables``: read what depends on codes alone from them.
    ``fused_draw``: leave the head's last product to the draw, which can have neither top-k nor top-p then.
    ``dependent_launch``: products of few rows, and the whole head where one kernel is asked for, begin to fetch
    their weights while the kernel before them runs. ``skip_query``: the head's first pass multiplies no queries."""

    tables: StepTables | None = None
    fused_draw: bool = False
    dependent_launch: bool = False
    skip_query: bool = False

    @property
    def any(self) -> bool:
        return self != StepOptions()


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
        parts = split_group(self.model, group)
        return [LevelLogits(part.level, part.positions.start, x) for part, x in zip(parts, logits, strict=True)]

    def skip(self, h_BD: Tensor) -> None:
        self.model.head.skip(h_BD, self.caches[1])


@dataclass(frozen=True)
class GroupPart:
    """The positions of a group that are of one level."""

    level: int
    positions: range


def split_group(model: HQTransformer, group: range) -> list[GroupPart]:
    """A group's positions by level, top first; they are neighbours."""
    levels = [model.config.local_levels[q] for q in group]
    starts = [group.start + levels.index(level) for level in sorted(set(levels))]
    ends = [*starts[1:], group.stop]
    return [
        GroupPart(level, range(start, end)) for level, start, end in zip(sorted(set(levels)), starts, ends, strict=True)
    ]


def make_caches(model: HQTransformer, batch: int) -> tuple[KVCache, KVCache]:
    """The body's cache for all its positions, and the head's for those of one step."""
    config, weight = model.config, model.norm.weight

    def make(blocks: Blocks | None, heads: int, capacity: int) -> KVCache:
        return KVCache(
            layers=0 if blocks is None else len(blocks.layers),
            batch=batch,
            heads=heads,
            capacity=capacity,
            width=config.dim // heads,
            dtype=weight.dtype,
            device=weight.device,
        )

    head_blocks = getattr(model.head, "blocks", None)
    body = make(model.body, config.body.num_heads, config.prefix_positions + config.num_steps - 1)
    return body, make(head_blocks, config.head.num_heads, config.num_local)

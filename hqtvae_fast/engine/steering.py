"""What a drawing is held to beside its condition: guidance, and codes that are known.

*Guidance*, classifier-free: each image has a second row, whose condition is withheld. Both branches are one batch of
2 B rows, the B conditions shown first. The body and the head see twice the rows and know nothing of it; the draw reads
two rows of logits for an image, and writes its code into both (:func:`hqtvae_fast.ops.sample_logits`). So a guided step
has the kernels of a plain one, and noise and seeds are those of the B images.

*Completion*: some codes of a picture are known, and stay. Every code is drawn in its turn, and where it is kept the
known one is written over it. So noise and seeds are those of a plain drawing, whatever the mask, and a mask read from
the device is one that a capture may change. What is drawn after a kept code sees it, as it sees a drawn one: in raster
order, so that the model knows nothing of kept codes that are still to come. A mask that keeps the first windows is thus
exact; another one is not a draw from the model given all that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hqtvae_fast.codes import can_look
from hqtvae_fast.config import TransformerConfig, first_level
from hqtvae_fast.model.pyramid import to_local, window_side

BRANCHES = 2


class Guidance(NamedTuple):
    """A row an image: ``scale`` fp32 [B, T or 1, levels or 1], by which logits are led away from those of
    ``condition``, labels [B] or tokens [B, P]: the null condition, or a negative prompt."""

    scale: Tensor
    condition: Tensor

    def of_draws(self, config: TransformerConfig) -> Tensor:
        """Scales as the draws read them, fp32 [T, levels, B]."""
        B, own = len(self.scale), self.scale[..., : config.num_levels]
        return own.expand(B, config.num_steps, config.num_levels).permute(1, 2, 0).contiguous()

    @classmethod
    def off(cls, condition: Tensor) -> Guidance:
        """Of scale 1, against anything: a capture's buffers before they are filled."""
        scale = torch.ones(len(condition), 1, 1, dtype=torch.float32, device=condition.device)
        return cls(scale, torch.zeros_like(condition))


def check_guided(config: TransformerConfig, condition: Tensor | None, guidance: Guidance) -> None:
    """ValueError where this model, or these conditions, cannot be guided."""
    if config.null_index is None and config.condition != "text":
        raise ValueError(f"guidance: expected a model with a null condition; this one has none ({config.condition})")
    if condition is None or condition.shape != guidance.condition.shape:
        got = None if condition is None else list(condition.shape)
        raise ValueError(f"guidance: expected conditions of one shape; got {got} and {list(guidance.condition.shape)}")


class Known(NamedTuple):
    """Of each level of the pictures, top first: ``codes`` int64 [B, h, w], and ``keep`` bool [B, h, w], where they
    stay."""

    codes: Sequence[Tensor]
    keep: Sequence[Tensor]

    @classmethod
    def none(cls, config: TransformerConfig, batch: int, device: torch.device) -> Known:
        """Nothing is kept, of the levels that a transformer draws: a capture's buffers before they are filled."""
        shapes = [(batch, side, side) for side in (config.side * window_side(n) for n in range(config.num_levels))]
        codes = [torch.zeros(shape, dtype=torch.int64, device=device) for shape in shapes]
        return cls(codes, [torch.zeros(shape, dtype=torch.bool, device=device) for shape in shapes])

    def of(self, config: TransformerConfig) -> Known:
        """The levels that a transformer draws."""
        own = slice(first_level(config), first_level(config) + config.num_levels)
        return Known(self.codes[own], self.keep[own])

    def steps(self, config: TransformerConfig, batch: int) -> KnownSteps:
        """As a transformer's steps meet its own levels; ValueError on other sizes."""
        counts = {len(level) for maps in self for level in maps}
        if counts != {batch}:
            raise ValueError(f"known: expected codes of {batch} pictures, and where they stay; got {sorted(counts)}")
        return KnownSteps(to_local(self.codes, config.side), to_local(self.keep, config.side))


class KnownSteps(NamedTuple):
    """Local pyramids [B, T, n] of :class:`Known`."""

    codes: Tensor
    keep: Tensor

    def whole(self) -> frozenset[int]:
        """The steps of which every image keeps every code, where that may be looked at: nothing is to be drawn."""
        if not can_look(self.keep):
            return frozenset()
        return frozenset(self.keep.all(dim=2).all(dim=0).nonzero().flatten().tolist())

    def write(self, local_BN: Tensor, index: int, first: int, count: int) -> None:
        """Kept codes over those drawn at ``count`` positions of a step from ``first`` on; the rows of ``local_BN`` are
        images, of a guided drawing in both branches."""
        part = slice(first, first + count)
        drawn = local_BN[:, part].unflatten(0, (-1, len(self.codes)))
        torch.where(self.keep[:, index, part], self.codes[:, index, part], drawn, out=drawn)

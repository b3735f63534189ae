"""Classifier-free guidance while drawing: each image has a second row, whose condition is withheld.

Both branches are one batch of 2 B rows, the B conditions shown first. The body and the head see twice the rows and know
nothing of it; the draw reads two rows of logits for an image, and writes its code into both
(:func:`hqtvae_fast.ops.sample_logits`). So a guided step has the kernels of a plain one, and noise and seeds are those
of the B images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hqtvae_fast.config import TransformerConfig

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

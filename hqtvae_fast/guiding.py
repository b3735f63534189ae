"""Classifier-free guidance as a user asks for it: scales and a negative prompt, checked and spread over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.arguments import is_sequence, real
from hqtvae_fast.config import HQTVAEConfig, TransformerConfig
from hqtvae_fast.engine import Guidance
from hqtvae_fast.fields import shown
from hqtvae_fast.ops.kernels.sample_logits import STRONGEST

WANTED = f"numbers from 0 to {STRONGEST:g}: one, one a level, [steps, levels] or [images, steps, levels]"
NO_NULL = (
    "guidance_scale: expected 1, as this checkpoint has no null condition to guide against (it is trained with"
    " condition_dropout); got another"
)


@dataclass(frozen=True)
class Guided:
    """``scale`` fp32 [C or 1, T or 1, levels or 1]; ``against``: tokens [C or 1, P] of negative prompts, or None for
    the null condition."""

    scale: Tensor
    against: Tensor | None

    def of(self, condition: Tensor, spread: Callable[[str, Tensor], Tensor], null: int | None) -> Guidance:
        """A row an image, of conditions [N] or [N, P]; ``spread`` gives rows one an image."""
        if self.against is not None:
            return Guidance(spread("guidance_scale", self.scale), spread("negative_prompt", self.against))
        assert null is not None
        return Guidance(spread("guidance_scale", self.scale), torch.full_like(condition, null))


def read_guidance(
    config: HQTVAEConfig, scale: Any, negative: Any, tokenize: Callable[[Sequence[str]], Tensor]
) -> Guided | None:
    """None where every scale is 1. ``negative``: texts, or None. ValueError where the model cannot be guided so, which
    its configuration alone tells, and on numbers out of range."""
    model = config.transformer
    assert model is not None
    scales = _read_scales(scale, model, config.vae.num_levels)
    if negative is not None and model.condition != "text":
        raise ValueError(f"negative_prompt: expected none, as this model reads no text; got {shown(negative)}")
    if bool((scales == 1).all()):
        if negative is not None:
            raise ValueError("negative_prompt: expected a guidance_scale other than 1, at which it has no effect")
        return None
    if negative is None and model.null_index is None:
        also = ", or a negative_prompt" if model.condition == "text" else ""
        raise ValueError(NO_NULL + also)
    return Guided(scales, None if negative is None else tokenize(read_texts("negative_prompt", negative)))


def read_texts(name: str, texts: Any) -> list[str]:
    """One string or several; NumPy's become Python's."""
    several = not isinstance(texts, (str, bytes)) and isinstance(texts, Iterable)
    found = list(texts) if several else [texts]
    if not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{name}: expected a string or a list of strings; got {shown(texts)}")
    return [str(text) for text in found]


def _read_scales(scale: Any, model: TransformerConfig, levels: int) -> Tensor:
    """fp32 [images, steps, levels], each 1 where it is the same for all."""
    if not (is_sequence(scale) or isinstance(scale, Tensor)):
        scale = real("guidance_scale", scale, WANTED)
    try:
        values = torch.as_tensor(scale, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"guidance_scale: expected {WANTED}; got {shown(scale)}") from None
    values = values.reshape((1,) * (3 - values.ndim) + tuple(values.shape)) if values.ndim < 3 else values
    fits = values.ndim == 3 and values.shape[1] in (1, model.num_steps) and values.shape[2] in (1, levels)
    if not fits or len(values) == 0:
        sizes = f"{model.num_steps} steps and {levels} levels"
        raise ValueError(f"guidance_scale: expected {WANTED}; got {list(values.shape)}, of {sizes}")
    outside = ~((values >= 0) & (values <= STRONGEST))
    if bool(outside.any()):
        raise ValueError(f"guidance_scale: expected {WANTED}; got {float(values[outside][0]):g}")
    return values

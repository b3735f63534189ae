"""The training losses of both stages, as functions of what the models return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.config import WINDOW
from hqtvae_fast.model import HQLogits, HQVAEOutput
from hqtvae_fast.ops.kernels.soft_label_cross_entropy import soft_label_cross_entropy
from hqtvae_fast.train.config import TopOnly

RATIO_EPSILON = 1e-4
MAX_RATIO = 1e4


def _wide(x: Tensor) -> Tensor:
    """In fp32 at least: losses are means over many values, which is not for half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ------------------------------------------------------------------------------------------------------------- stage 1


@dataclass(frozen=True)
class Stage1Weights:
    """How the parts of the stage-1 loss are weighed; the defaults are the paper's."""

    perceptual: float = 1.0
    adversarial: float = 0.75
    """Times the ratio of gradient norms, see :func:`adaptive_weight`."""
    adversarial_start: int = 0
    """First update with a discriminator; earlier ones train neither it nor the decoder against it."""
    commitment: float = 1.0
    """On top of beta (``VAEConfig.commitment_weight``), which the model has multiplied by already."""
    top_only: TopOnly = "none"
    """Losses that the picture decoded from top codes alone shares, half and half with the whole one: none of them;
    ``pixels``, the mean squared error; or ``all``. (Table 4's way to keep learned resamplers from leaving the top codes
    unused.)"""
    residual: float = 0.0
    """Of the mean |residual| of each level below the top, summed: another way to the same."""

    def adversarial_at(self, step: int) -> float:
        return self.adversarial if step >= self.adversarial_start else 0.0


@dataclass(frozen=True)
class Stage1Loss:
    """Scalars. All but ``total`` are detached, and without their weights; ``adversarial_weight`` is what came of it."""

    total: Tensor
    reconstruction: Tensor
    perceptual: Tensor
    adversarial: Tensor
    adversarial_weight: Tensor
    commitment: Tensor
    residual: Tensor


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half of mean max(0, 1 - real) + mean max(0, 1 + fake), of scores of any shape."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean fake: the decoder raises the scores of its pictures."""
    return -fake.mean()


def _same(gradient: Tensor) -> Tensor:
    return gradient


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, reduce: Callable[[Tensor], Tensor] = _same
) -> Tensor:
    """|d reconstruction / d last_layer| / (|d adversarial / d last_layer| + 1e-4), within [0, 1e4], detached.

    Both losses are scalars that depend on ``last_layer``, the decoder's last weight. With this weight the discriminator
    pulls at that layer as hard as the reconstruction does, whatever the scale of its scores. ``reduce`` averages a
    gradient over ranks before its norm is taken, so that all of them come to the weight of the whole batch.
    """
    wanted, pulled = (
        torch.linalg.vector_norm(reduce(_wide(torch.autograd.grad(loss, last_layer, retain_graph=True)[0])))
        for loss in (reconstruction, adversarial)
    )
    return (wanted / (pulled + RATIO_EPSILON)).clamp(0, MAX_RATIO).detach()


def stage1_loss(
    images: Tensor,
    output: HQVAEOutput,
    *,
    last_layer: Tensor,
    step: int,
    discriminator: Callable[[Tensor], Tensor] | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    weights: Stage1Weights | None = None,
    reduce: Callable[[Tensor], Tensor] = _same,
) -> Stage1Loss:
    """Eq. 4 without its codebook term (an EMA stands for that), plus the perceptual and the adversarial loss.

    ``images`` [B, 3, R, R] in [-1, 1]; ``output``: HQ-VAE's training pass on them; ``last_layer``: its
    ``decoder.last_layer``; ``step``: the update, from 0; ``discriminator``: images to scores; ``perceptual``: images
    and references to distances [B]. None leaves a part out. The adversarial gradient reaches the discriminator's
    parameters too, and is to be dropped there. ``reduce`` is for :func:`adaptive_weight`. Where no gradient is
    recorded, as in validation, the adversarial weight is 0.
    """
    weights = weights or Stage1Weights()
    pictures, compared = _compared(output, weights.top_only)
    zero = pictures[0].new_zeros(())
    reconstruction = _mean([F.mse_loss(picture, images.to(picture.dtype)) for picture in pictures])
    distance = zero
    if perceptual is not None and weights.perceptual:
        distance = _mean([perceptual(picture, images).mean() for picture in compared])
    data_term = reconstruction + weights.perceptual * distance
    commitment = torch.stack([_wide(loss) for loss in output.commitment]).sum()
    residual = sum((_wide(level.residual).abs().mean() for level in output.levels[1:]), start=zero)
    adversarial, weight = zero, zero
    if discriminator is not None and weights.adversarial_at(step):
        adversarial = _mean([hinge_generator_loss(_wide(discriminator(picture))) for picture in compared])
        if pictures[0].requires_grad:
            weight = weights.adversarial_at(step) * adaptive_weight(data_term, adversarial, last_layer, reduce)
    total = data_term + weight * adversarial + weights.commitment * commitment + weights.residual * residual
    parts = (reconstruction, distance, adversarial, weight, commitment, residual)
    return Stage1Loss(total, *(part.detach() for part in parts))


def _compared(output: HQVAEOutput, top_only: TopOnly) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures that the mean squared error sees, and those that the other losses see."""
    whole = _wide(output.reconstruction)
    if top_only == "none":
        return [whole], [whole]
    if output.top_only is None:
        raise ValueError(f"top_only={top_only!r}: expected an output with the picture of the top codes; got none")
    both = [whole, _wide(output.top_only)]
    return both, both if top_only == "all" else both[:1]


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


# ------------------------------------------------------------------------------------------------------------- stage 2


@dataclass(frozen=True)
class SoftLabels:
    """A level's labels softmax(-|z - e_k|^2 / temperature), kept as what they are computed from.

    ``residual`` [B, C, h, w]: the quantiser's input; ``codebook`` [K, C]; ``temperature``: tau, in units of squared
    distance. Written out, the labels of a batch of 512 over 16x16 positions and 8192 codes take 4.3 GB.
    """

    residual: Tensor
    codebook: Tensor
    temperature: float = 1.0


UNCOUNTED = -100
"""A token whose prediction is not counted; torch's own."""

Target: TypeAlias = Tensor | SoftLabels
"""Of one level: codes, int64 [B, h, w] or [B, h*w] row by row; or label probabilities [B, h, w, K]; or SoftLabels."""


@dataclass(frozen=True)
class Stage2Weights:
    """How the parts of the stage-2 loss are weighed; the defaults are the paper's."""

    levels: tuple[float, ...] | None = None
    """One a level, top first; None means the number of codes below a top code: (1, 4) or (1, 4, 16)."""
    image: float = 0.9
    """Of the image's loss, where a text is predicted too; without one the image's loss stands alone."""
    text: float = 0.1
    """Of the text's loss, which is first scaled by the weights of the two coarsest levels (5 in the paper's models)."""

    def of_levels(self, count: int) -> tuple[float, ...]:
        levels = self.levels or tuple(float(WINDOW ** (2 * level)) for level in range(count))
        if len(levels) != count:
            raise ValueError(f"weights.levels: expected {count} of them; got {levels}")
        return levels


@dataclass(frozen=True)
class Stage2Loss:
    """Scalars. All but ``total`` are detached, and without their weights: mean negative log-likelihoods in nats."""

    total: Tensor
    levels: tuple[Tensor, ...]
    text: Tensor | None


def level_loss(logits: Tensor, target: Target) -> Tensor:
    """Mean cross-entropy of one level's predictions [B, S, K], positions row by row, against its target, in nats."""
    logits_NK = logits.flatten(0, 1)
    if isinstance(target, SoftLabels):
        z_NC = target.residual.permute(0, 2, 3, 1).flatten(0, 2)
        return soft_label_cross_entropy(logits_NK, z_NC, target.codebook, target.temperature)
    logits_NK = _wide(logits_NK)
    if target.is_floating_point():
        return F.cross_entropy(logits_NK, target.flatten(0, -2).to(logits_NK.dtype))
    return F.cross_entropy(logits_NK, target.flatten())


def text_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of predictions [B, S, V] against tokens [B, S], in nats, of those that are counted; 0 if none
    is."""
    summed = F.cross_entropy(_wide(logits.flatten(0, 1)), tokens.flatten(), ignore_index=UNCOUNTED, reduction="sum")
    return summed / (tokens != UNCOUNTED).sum().clamp_min(1)


def stage2_loss(
    logits: HQLogits,
    targets: Sequence[Target],
    text: Tensor | None = None,
    weights: Stage2Weights | None = None,
) -> Stage2Loss:
    """CE_top + 4 CE_bottom (+ 16 CE of a third level); with text, 0.9 of that + 0.1 * 5 CE_text.

    ``targets``: one a level, top first. ``text``: the tokens [B, P] that were the condition, whose second to last are
    predicted, but for those :data:`UNCOUNTED`; None for any other condition. (A prior over bottom codes predicts the
    top codes of its prefix as well, but is not trained to.) Raises ValueError when ``logits`` has other levels or no
    text.
    """
    weights = weights or Stage2Weights()
    if len(targets) != len(logits.levels):
        raise ValueError(f"targets: expected {len(logits.levels)} levels, as predicted; got {len(targets)}")
    level_weights = weights.of_levels(len(targets))
    levels = [level_loss(*pair) for pair in zip(logits.levels, targets, strict=True)]
    total = torch.stack([weight * loss for weight, loss in zip(level_weights, levels, strict=True)]).sum()
    of_text = None
    if text is not None:
        if logits.text is None:
            raise ValueError("text: expected none, as the model predicts no text; got tokens")
        of_text = text_loss(logits.text, text[:, 1:])
        total = weights.image * total + weights.text * sum(level_weights[:2]) * of_text
        of_text = of_text.detach()
    return Stage2Loss(total, tuple(loss.detach() for loss in levels), of_text)

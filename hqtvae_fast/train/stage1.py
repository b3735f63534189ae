"""Stage 1: HQ-VAE against its reconstruction, its perceptual distance and a discriminator (eq. 1-4)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from PIL import Image
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.config import HQTVAEConfig
from hqtvae_fast.model import HQVAE, HQVAEOutput
from hqtvae_fast.ops.kernels.ema_update import code_statistics
from hqtvae_fast.pictures.images import psnr
from hqtvae_fast.train.codes.usage import RecentCodes, perplexity
from hqtvae_fast.train.config import Schedule
from hqtvae_fast.train.data import Batch
from hqtvae_fast.train.loop.optim import fused, stage1_optimizer
from hqtvae_fast.train.loop.runner import mean_over_ranks
from hqtvae_fast.train.loop.schedule import warmup_constant_lr, warmup_cosine_lr
from hqtvae_fast.train.losses import Stage1Loss, Stage1Weights, hinge_discriminator_loss, stage1_loss
from hqtvae_fast.train.losses.discriminator import PatchDiscriminator
from hqtvae_fast.train.losses.perceptual import Cropped, PerceptualDistance
from hqtvae_fast.train.shown.sheets import reconstruction_sheet
from hqtvae_fast.train.validation import HeldOut, validate_vae

SHOWN = 8  # held-out pictures in a reconstruction sheet


@dataclass(frozen=True)
class Stage1Settings:
    """What stage 1 is trained with; the defaults are the paper's."""

    steps: int
    warmup_steps: int = 0
    learning_rate: float = 4e-5
    schedule: Schedule = "cosine"
    """Of the learning rate after its warm-up."""
    weights: Stage1Weights = field(default_factory=Stage1Weights)
    discriminator_channels: int = 64
    perceptual_crop: int | None = None
    """Side of the square that the perceptual loss sees; None: the whole pictures."""
    restart_unused: bool = False
    """Give codes that hardly any vector chooses (a tenth of their share) vectors of the batch."""
    seed: int = 0


class Stage1:
    """The :class:`hqtvae_fast.train.loop.runner.Task` of stage 1."""

    def __init__(
        self,
        accelerator: Accelerator,
        vae: HQVAE,
        settings: Stage1Settings,
        *,
        perceptual: PerceptualDistance | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.accelerator, self.settings, self.held_out = accelerator, settings, held_out
        self.last: Batch | None = None
        """What the last update saw."""
        vae = vae.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload, unused-ignore]
        self.perceptual = None if perceptual is None else perceptual.to(accelerator.device)
        self.model, self.optimizer, self.schedule = self._prepare(vae, first_step=0)
        self.vae: HQVAE = accelerator.unwrap_model(self.model)
        self.recent = RecentCodes(vae.config.codebook_sizes, accelerator.device)
        accelerator.register_for_checkpointing(self.recent)
        self.discriminator: torch.nn.Module | None = None
        if settings.weights.adversarial:
            prepared = self._prepare(
                PatchDiscriminator(settings.discriminator_channels), first_step=settings.weights.adversarial_start
            )
            self.discriminator, self.discriminator_optimizer, self.discriminator_schedule = prepared
            # Not part of the model that is saved.
            accelerator.register_for_checkpointing(accelerator.unwrap_model(self.discriminator))

    def _prepare(
        self, module: torch.nn.Module, first_step: int
    ) -> tuple[torch.nn.Module, AcceleratedOptimizer, LambdaLR]:
        """A module to train from update ``first_step`` on, with its optimiser and schedule, known to checkpoints."""
        optimizer = stage1_optimizer(module, self.settings.learning_rate, fused=fused(self.accelerator.device))
        schedule = self._schedule(optimizer, first_step)
        self.accelerator.register_for_checkpointing(schedule)
        return (*self.accelerator.prepare(module, optimizer), schedule)

    def _schedule(self, optimizer: torch.optim.Optimizer, first_step: int) -> LambdaLR:
        settings = self.settings
        if settings.schedule == "constant":
            return warmup_constant_lr(optimizer, warmup_steps=settings.warmup_steps, first_step=first_step)
        steps = {"warmup_steps": settings.warmup_steps, "total_steps": settings.steps}
        return warmup_cosine_lr(optimizer, **steps, first_step=first_step)

    # -------------------------------------------------------------------------------------------------------- update

    def update(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        """Decoder and encoder, then the discriminator on the same reconstructions, then the codebooks."""
        outputs, metrics = self._update_vae(micro_batches, step)
        if self.discriminator is not None and self.settings.weights.adversarial_at(step):
            metrics["discriminator"] = self._update_discriminator(self.discriminator, micro_batches, outputs)
        usage = self._update_codebooks(outputs, step)
        self.last = micro_batches[-1] if self.held_out is None else None
        return {**mean_over_ranks(self.accelerator, metrics), **usage}

    def _update_vae(self, micro_batches: list[Batch], step: int) -> tuple[list[HQVAEOutput], dict[str, Tensor]]:
        count = len(micro_batches)
        outputs, losses = [], []
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        for index, batch in enumerate(micro_batches):
            with self._gradients_meet(self.model, index == count - 1):
                with self.accelerator.autocast():
                    output = self.model(batch.images, top_only=self.settings.weights.top_only != "none")
                    loss = self._loss(batch.images, output, step)
                self.accelerator.backward(loss.total / count)
            outputs.append(output)
            losses.append(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return outputs, _summary(micro_batches, outputs, losses)

    def _loss(self, images: Tensor, output: HQVAEOutput, step: int) -> Stage1Loss:
        return stage1_loss(
            images,
            output,
            last_layer=self.vae.decoder.last_layer,
            step=step,
            discriminator=None if self.discriminator is None else self.accelerator.unwrap_model(self.discriminator),
            perceptual=self._perceptual(step),
            weights=self.settings.weights,
            reduce=self._mean_gradient,
        )

    def _perceptual(self, step: int) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The perceptual distance, of the square that is this update's turn: the same one on every rank."""
        side = self.settings.perceptual_crop
        if self.perceptual is None or side is None:
            return self.perceptual
        return Cropped(self.perceptual, side, seed=self.settings.seed * 1_000_003 + step)

    def _mean_gradient(self, gradient: Tensor) -> Tensor:
        """So that every rank weighs the adversarial loss alike, as one process would."""
        return self.accelerator.reduce(gradient, reduction="mean")

    def _update_discriminator(
        self, discriminator: torch.nn.Module, micro_batches: list[Batch], outputs: list[HQVAEOutput]
    ) -> Tensor:
        count = len(micro_batches)
        discriminator.requires_grad_(True)
        total = torch.zeros((), dtype=torch.float32, device=self.accelerator.device)
        for index, (batch, output) in enumerate(zip(micro_batches, outputs, strict=True)):
            with self._gradients_meet(discriminator, index == count - 1):
                with self.accelerator.autocast():
                    scores = discriminator(torch.cat([batch.images, *self._fakes(output)]))
                    real, fake = scores.float().tensor_split([len(batch.images)])
                    loss = hinge_discriminator_loss(real, fake)
                self.accelerator.backward(loss / count)
            total += loss.detach() / count
        self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        self.discriminator_schedule.step()
        return total

    def _fakes(self, output: HQVAEOutput) -> list[Tensor]:
        """What the discriminator is to tell from pictures: of equal sizes, so that each weighs alike in its loss."""
        fakes = [output.reconstruction.detach()]
        if self.settings.weights.top_only == "all" and output.top_only is not None:
            fakes.append(output.top_only.detach())
        return fakes

    def _gradients_meet(self, module: torch.nn.Module, last: bool) -> ExitStack:
        """Ranks exchange gradients in the last micro-batch only."""
        stack = ExitStack()
        if not last:
            stack.enter_context(self.accelerator.no_sync(module))
        return stack

    # ----------------------------------------------------------------------------------------------------- codebooks

    @torch.no_grad()
    def _update_codebooks(self, outputs: list[HQVAEOutput], step: int) -> dict[str, Tensor]:
        """EMA of all ranks' codes of this update; by level the share of codes in use, and their perplexity."""
        usage = {}
        for index, codebook in enumerate(self.vae.codebooks):
            residual_NC = torch.cat([_rows(output.levels[index].residual) for output in outputs]).float()
            codes_N = torch.cat([output.levels[index].codes.flatten() for output in outputs])
            counts_K, sums_KC = code_statistics(residual_NC, codes_N, len(codebook.embedding))
            packed = self.accelerator.reduce(torch.cat([counts_K[:, None], sums_KC], dim=1), reduction="sum")
            pictures = sum(len(output.reconstruction) for output in outputs)
            restart = self._candidates(residual_NC, pictures, step) if self.settings.restart_unused else None
            codebook.apply_statistics(packed[:, 0], packed[:, 1:], restart)
            usage[f"usage_{index}"] = self.recent.add(index, packed[:, 0])
            usage[f"perplexity_{index}"] = perplexity(codebook.cluster_size)
        return usage

    def _candidates(self, residual_NC: Tensor, pictures: int, step: int) -> Callable[[int], Tensor]:
        """Vectors of the whole batch to restart codes with: the same ones on every rank, for any number of ranks."""

        def choose(count: int) -> Tensor:
            everyone = self.accelerator.gather(residual_NC)
            # Rank r holds pictures r, r + world, ...: back to the order that one process would have.
            shape = (self.accelerator.num_processes, pictures, -1, residual_NC.shape[1])
            ordered = everyone.view(shape).transpose(0, 1).reshape(everyone.shape)
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
            return ordered[
                torch.randint(len(ordered), (count,), generator=generator, dtype=torch.int64, device="cpu").to(
                    ordered.device
                )
            ]

        return choose

    # ------------------------------------------------------------------------------------------------------- results

    def validate(self) -> dict[str, float]:
        """See :func:`validate_vae`; empty without held-out pictures."""
        if self.held_out is None:
            return {}
        self.vae.eval()
        try:
            return validate_vae(self.accelerator, self.vae, self.held_out)
        finally:
            self.vae.train()

    @torch.no_grad()
    def pictures(self, step: int) -> Image.Image | None:
        """Held-out pictures above their reconstructions; without any, of the last update."""
        if self.held_out is not None:
            images, names = self.held_out.some(SHOWN).images, self.held_out.names(SHOWN)
        elif self.last is not None:
            images, names = self.last.images[:SHOWN], [Path(key).stem for key in self.last.keys[:SHOWN]]
        else:
            return None
        images = images.to(self.accelerator.device)
        self.vae.eval()
        try:
            rebuilt = self.vae.decode(self.vae.encode(images))
        finally:
            self.vae.train()
        return reconstruction_sheet(images, rebuilt, names, "training" if self.held_out is None else "held out")

    def save(self, directory: Path) -> None:
        config = HQTVAEConfig(vae=self.vae.config, transformer=None)
        checkpoints.save(checkpoints.Checkpoint(config, self.vae, None), directory)

    def load(self, directory: Path) -> None:
        self.vae.load_state_dict(checkpoints.load(directory).vae.state_dict())


def _rows(z_BCHW: Tensor) -> Tensor:
    return z_BCHW.detach().permute(0, 2, 3, 1).flatten(0, 2)


def _summary(batches: list[Batch], outputs: list[HQVAEOutput], losses: list[Stage1Loss]) -> dict[str, Tensor]:
    """Means over the micro-batches, PSNR in dB among them."""
    named = {
        "loss": [loss.total.detach() for loss in losses],
        "mse": [loss.reconstruction for loss in losses],
        "perceptual": [loss.perceptual for loss in losses],
        "adversarial": [loss.adversarial for loss in losses],
        "adversarial_weight": [loss.adversarial_weight for loss in losses],
        "commitment": [loss.commitment for loss in losses],
        "residual": [loss.residual for loss in losses],
        "psnr": [
            psnr(output.reconstruction.detach().float().clamp(-1, 1) * 0.5 + 0.5, batch.images * 0.5 + 0.5).mean()
            for batch, output in zip(batches, outputs, strict=True)
        ],
    }
    return {name: torch.stack(list(values)).mean() for name, values in named.items()}

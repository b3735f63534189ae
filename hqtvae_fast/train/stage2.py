"""Stage 2: HQ-Transformer on the codes of a frozen HQ-VAE (eq. 15: a sum of cross-entropies, one a level)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.classes import Names, fit_names
from hqtvae_fast.config import HQTVAEConfig, first_level
from hqtvae_fast.engine import Executor, Rows, SamplingParams
from hqtvae_fast.engine.loop import NAN_LOGITS
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.modes import no_autocast
from hqtvae_fast.pictures.images import to_pil
from hqtvae_fast.plan import Plan
from hqtvae_fast.seeds import image_seeds
from hqtvae_fast.text import PromptTokenizer
from hqtvae_fast.train.codes.cache import picture_latents, split_codes
from hqtvae_fast.train.data import Batch, Content
from hqtvae_fast.train.loop.optim import fused, stage2_optimizer
from hqtvae_fast.train.loop.position import OtherRunError
from hqtvae_fast.train.loop.runner import mean_over_ranks
from hqtvae_fast.train.loop.schedule import warmup_cosine_lr
from hqtvae_fast.train.losses import UNCOUNTED, SoftLabels, Stage2Loss, Stage2Weights, Target, stage2_loss
from hqtvae_fast.train.prior import same_vae
from hqtvae_fast.train.shown.sheets import PLACES, drawn_sheet, pictures_of_each
from hqtvae_fast.train.validation import HeldOut, Sums, spread

SHEETS = Plan(engine={1: "uncaptured"})
"""How pictures are drawn between updates: without captures, which would hold memory that training needs."""


@dataclass(frozen=True)
class Stage2Settings:
    """What stage 2 is trained with; the defaults are the paper's."""

    steps: int
    warmup_steps: int = 0
    learning_rate: float | None = None
    """None: 3e-4 for text, 5e-4 for everything else."""
    weight_decay: float = 1e-4
    clip: float | None = None
    """Largest norm of the gradient."""
    soft_labels: float | None = 1.0
    """tau of softmax(-squared distance / tau); None trains on the codes themselves."""
    condition_dropout: float = 0.0
    """The share of conditions that the null condition replaces."""
    weights: Stage2Weights = field(default_factory=Stage2Weights)
    sample_top_k: int | None = None
    sample_temperature: float = 1.0
    sample_prompts: tuple[str, ...] = ()
    """What the pictures at intervals are drawn from; without any of held-out captions, or of classes."""
    seed: int = 0


class Stage2:
    """The :class:`hqtvae_fast.train.loop.runner.Task` of stage 2."""

    def __init__(
        self,
        accelerator: Accelerator,
        vae: HQVAE,
        transformer: HQTransformer,
        settings: Stage2Settings,
        *,
        tokenizer_file: Path | None = None,
        prior: checkpoints.Checkpoint | None = None,
        held_out: HeldOut | None = None,
        stored: Content | None = None,
        classes: Names = (),
    ) -> None:
        """``prior``: the trained prior that a refiner is saved with; see :func:`hqtvae_fast.train.prior.open_prior`.

        ``stored``: what batches hold of pictures, where they come from a code cache; None: pixels. ``classes``: their
        names, as far as the training pictures have some.
        """
        self.accelerator, self.settings, self.config = accelerator, settings, transformer.config
        self.prior, self.held_out, self.stored = prior, held_out, stored
        names = fit_names(classes, self.config.num_classes) if self.config.condition == "class" else ()
        self.made = HQTVAEConfig(vae=vae.config, transformer=self.config, id2label=names)
        self.classes = self.made.classes
        self.captions: tuple[str, ...] = ()  # of the first update, to draw from where nothing else was named
        self.vae = vae.to(accelerator.device).eval().requires_grad_(False)
        self.tokenizer_file, self.tokenizer = tokenizer_file, None
        if self.config.condition == "text":
            if tokenizer_file is None:
                raise ValueError("tokenizer: a text-conditional model needs one; got none")
            self.tokenizer = PromptTokenizer(tokenizer_file, self.config.prefix_length, self.config.prefix_vocab_size)
        if self.config.condition == "codes":  # its predictions of the prefix are not trained
            transformer.prefix.head.requires_grad_(False)
        optimizer = stage2_optimizer(
            transformer.train(),
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=fused(accelerator.device),
        )
        self.schedule = warmup_cosine_lr(optimizer, warmup_steps=settings.warmup_steps, total_steps=settings.steps)
        self.model, self.optimizer = accelerator.prepare(transformer, optimizer)
        accelerator.register_for_checkpointing(self.schedule)
        self.transformer: HQTransformer = accelerator.unwrap_model(self.model)

    # -------------------------------------------------------------------------------------------------------- update

    def update(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        losses, count = [], len(micro_batches)
        self.captions = self.captions or (micro_batches[0].captions or ())[:PLACES]
        for index, batch in enumerate(micro_batches):
            codes, targets = self._code(batch.images, self.stored)
            with ExitStack() as stack:
                if index < count - 1:  # ranks exchange gradients in the last micro-batch only
                    stack.enter_context(self.accelerator.no_sync(self.model))
                loss = self._loss(self.model, batch, codes, targets)
                self.accelerator.backward(loss.total / count)
            losses.append(loss)
        metrics = _summary(losses)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return {**mean_over_ranks(self.accelerator, metrics), "gradient_norm": norm}

    def _loss(self, model: nn.Module, batch: Batch, codes: list[Tensor], targets: list[Target]) -> Stage2Loss:
        condition = self._condition(batch, codes)
        text = condition if self.config.condition == "text" else None
        if condition is not None and self.transformer.training and self.settings.condition_dropout > 0:
            condition, text = self._withhold(condition, text)
        with self.accelerator.autocast():
            logits = model(self._own_levels(codes), condition)
        return stage2_loss(logits, targets, text, self.settings.weights)

    def _withhold(self, condition: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Conditions, some of them the null one, of whose text no prediction counts."""
        assert self.config.null_index is not None
        chances = torch.rand(len(condition), dtype=torch.float32, device=condition.device)
        withheld = (chances < self.settings.condition_dropout).view(-1, *[1] * (condition.ndim - 1))
        shown = condition.masked_fill(withheld, self.config.null_index)
        return shown, None if text is None else text.masked_fill(withheld, UNCOUNTED)

    def _clip(self) -> Tensor:
        limit = self.settings.clip if self.settings.clip is not None else float("inf")
        return torch.as_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), limit)).detach()

    def _code(self, held: Tensor, content: Content | None) -> tuple[list[Tensor], list[Target]]:
        """Codes of all levels, and the targets of those that are predicted, of what a batch holds: what is stored of
        its pictures, or pixels where ``content`` is None."""
        if content == "codes":
            codes = split_codes(held, self.vae.config.level_sides)
            return codes, list(self._own_levels(codes))
        return self._quantize(held if content == "latents" else picture_latents(self.vae, held))

    @torch.no_grad()
    def _quantize(self, z: Tensor) -> tuple[list[Tensor], list[Target]]:
        with no_autocast():
            levels = self.vae.quantize(z)
        codes = [level.codes for level in levels]
        tau = self.settings.soft_labels
        if tau is None:
            return codes, list(self._own_levels(codes))
        pairs = list(zip(levels, self.vae.codebooks, strict=True))
        soft = [SoftLabels(level.residual, codebook.embedding, tau) for level, codebook in pairs]
        return codes, list(self._own_levels(soft))

    def _own_levels(self, levels: Sequence) -> Sequence:
        first = first_level(self.config)
        return levels[first : first + self.config.num_levels]

    def _condition(self, batch: Batch, codes: list[Tensor]) -> Tensor | None:
        if self.config.condition == "class":
            return batch.labels
        if self.config.condition == "codes":
            return codes[0].flatten(1)
        if self.tokenizer is not None and batch.captions is not None:
            return self.tokenizer.read(batch.captions)[0].to(batch.images.device)  # what is lost was said before
        return None

    # ------------------------------------------------------------------------------------------------------- results

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The losses of training, without dropout, as means over the held-out pictures; empty if there are none."""
        if self.held_out is None:
            return {}
        sums, stored = Sums(), self.held_out.dataset.stored
        content = None if stored is None else stored.content
        self.transformer.eval()
        try:
            for batch in self.held_out:
                moved = batch.to(self.accelerator.device)
                loss = self._loss(self.transformer, moved, *self._code(moved.images, content))
                weighted = {name: value.double() * len(batch) for name, value in _summary([loss]).items()}
                sums.add({**weighted, "pictures": torch.tensor(len(batch), dtype=torch.int64, device="cpu")})
        finally:
            self.transformer.train()
        total = sums.total(self.accelerator)
        pictures = total.pop("pictures")
        return {name: float(value / pictures) for name, value in total.items()}

    def pictures(self, step: int) -> Image.Image | None:
        """Pictures drawn with the model as it stands, from the same seeds each time: of ``sample_prompts``, or of the
        held-out captions, or of trained classes."""
        if self.config.decoding == "global":
            return None
        subjects, condition = self._subjects()
        each = pictures_of_each(len(subjects))
        condition = None if condition is None else condition.repeat_interleave(each, dim=0)
        levels = self.config.num_levels
        params = SamplingParams(
            (self.settings.sample_temperature,) * levels, (self.settings.sample_top_k,) * levels, (None,) * levels
        )
        self.transformer.eval()
        device = self.accelerator.device
        executor = Executor([self.transformer], self.vae, device, SHEETS)
        seeds = image_seeds(self.settings.seed, each * len(subjects)).to(device)
        invalid = torch.zeros((), dtype=torch.bool, device=device)
        try:
            codes = executor.draw(*Rows(condition, seeds, [params]), invalid, lambda: None)
            if bool(invalid):
                raise ValueError(NAN_LOGITS)
            return drawn_sheet(subjects, to_pil(executor.decode(codes, len(seeds))))
        finally:
            self.transformer.train()

    def _subjects(self) -> tuple[list[str], Tensor | None]:
        """What is drawn, in words and as the model's condition."""
        device = self.accelerator.device
        if self.tokenizer is not None:
            captions = list(self.settings.sample_prompts) or self._captions() or [""]
            return captions, self.tokenizer.read(captions)[0].to(device)
        if self.config.condition == "class":
            trained = self.classes.trained
            shown = [trained[place] for place in spread(len(trained), PLACES)]
            labels = torch.tensor(shown, dtype=torch.int64, device=device)
            return [self.classes.caption(label) for label in shown], labels
        return [""], None

    def _captions(self) -> list[str]:
        """Held-out ones; without any, of the first update."""
        found = self.captions if self.held_out is None else self.held_out.some(PLACES).captions or ()
        return list(dict.fromkeys(found))

    def save(self, directory: Path) -> None:
        made = checkpoints.Checkpoint(self.made, self.vae, self.transformer, tokenizer_file=self.tokenizer_file)
        if self.prior is not None:
            made = checkpoints.with_refiner(self.prior, made)
        checkpoints.save(made, directory)

    def load(self, directory: Path) -> None:
        held = checkpoints.load(directory)
        if not same_vae(self.vae, held.vae):
            raise OtherRunError(
                "vae: expected the stage 1 that this run was started with; this is another: give another --out"
            )
        trained = held.transformer if self.prior is None else held.refiner
        assert trained is not None
        self.transformer.load_state_dict(trained.state_dict())


def _summary(losses: list[Stage2Loss]) -> dict[str, Tensor]:
    """Means over the micro-batches: nats a code."""
    metrics = {"loss": torch.stack([loss.total.detach() for loss in losses]).mean()}
    for level in range(len(losses[0].levels)):
        metrics[f"level_{level}"] = torch.stack([loss.levels[level] for loss in losses]).mean()
    if losses[0].text is not None:
        metrics["text"] = torch.stack([loss.text for loss in losses if loss.text is not None]).mean()
    return metrics

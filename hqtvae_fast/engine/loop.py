"""THE sampling loop: T steps, each one top code and then its finer codes.

Every policy runs through it: a step is one position of the body, then the head's groups in order. Buffers are
allocated before the first step; inside, nothing is concatenated and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from hqtvae_fast.codes import read_level
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine.cache import StepTables
from hqtvae_fast.engine.fused_step import Engine, make_step
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.engine.steering import BRANCHES, Guidance, Known, KnownSteps, check_guided
from hqtvae_fast.engine.step import LevelFeatures, LevelLogits, Step, WholeHead
from hqtvae_fast.hardware import send
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.pyramid import to_local, to_maps
from hqtvae_fast.modes import inference
from hqtvae_fast.ops.kernels.draw_from_head import draw_from_head
from hqtvae_fast.ops.kernels.sample_logits import check_sampling, sample_logits
from hqtvae_fast.threads import drawing_flops, threads_for

OnStep = Callable[[], None]
NAN_LOGITS = "the model gave NaN logits: expected finite weights in a dtype that holds its activations"


@dataclass(frozen=True)
class SamplingParams:
    """Temperature, top-k and top-p of each predicted level, top first."""

    temperature: tuple[float, ...]
    top_k: tuple[int | None, ...]
    top_p: tuple[float | None, ...]

    def check(self, config: TransformerConfig) -> None:
        """ValueError unless there is one of each a level, all in range."""
        for name, values in (("temperature", self.temperature), ("top_k", self.top_k), ("top_p", self.top_p)):
            if len(values) != config.num_levels:
                raise ValueError(f"{name}: expected {config.num_levels} values, one a level; got {len(values)}")
        for values in zip(self.temperature, self.top_k, self.top_p, config.codebook_sizes, strict=True):
            check_sampling(*values)

    @property
    def filtered(self) -> bool:
        """Whether any level has a top-k or a top-p."""
        return any(value is not None for value in (*self.top_k, *self.top_p))


@inference()
def draw_codes(
    model: HQTransformer,
    condition: Tensor | None,
    seeds: Tensor,
    params: SamplingParams,
    *,
    given_top_codes: Tensor | None = None,
    guidance: Guidance | None = None,
    known: Known | None = None,
    on_step: OnStep | None = None,
    engine: Engine | None = None,
    options: EngineOptions | None = None,
    tables: StepTables | None = None,
) -> tuple[Tensor, ...]:
    """Draw code maps, int64 [B, h, w] a predicted level, top first.

    ``condition``: labels [B], tokens [B, P], top codes [B, P] (a refiner) or None; ``seeds`` int64 [B], see
    :func:`hqtvae_fast.seeds.image_seeds`; ``given_top_codes`` [B, h, w] are kept and only finer codes are drawn
    (the paper's figure 4b). ``guidance``: two rows an image are computed, see :mod:`hqtvae_fast.engine.steering`;
    ``known``: codes that stay, see :mod:`hqtvae_fast.engine.steering`. ``on_step`` is called after each of the T
    steps has been issued. The same seed gives the same codes in any batch, as far as matrix products give the same
    logits there. ``options``: a fused draw is one only without top-k and top-p; ``tables``: those that they ask for,
    where they are made already. Raises ValueError on parameters out of range and, at the end on a GPU and at once on a
    CPU, on logits that are NaN.
    """
    how: dict[str, Any] = {"engine": engine, "options": options, "tables": tables}
    how |= {"given": given_top_codes, "guidance": guidance, "known": known}
    drawing = Drawing.make(model, condition, seeds, params, **how)
    drawing.run(on_step)
    if bool(drawing.draw.invalid):
        raise ValueError(NAN_LOGITS)
    return drawing.maps()


@dataclass(frozen=True)
class Drawing:
    """One batch's loop over named static buffers, which fills ``local_BTN``. Inside, nothing is sent to the device and
    nothing waits for it. Rows are images, of a guided drawing in both branches: :mod:`hqtvae_fast.engine.steering`."""

    config: TransformerConfig
    step: Step
    draw: _Draw
    condition: Tensor | None
    local_BTN: Tensor
    keep_top: bool
    """Whether the top codes were given."""
    whole_head: WholeHead | None = None
    """Runs the head and draws in one operation, where that was asked for."""
    known: KnownSteps | None = None
    whole: frozenset[int] = frozenset()
    """The steps of which nothing is to be drawn."""

    @classmethod
    def make(
        cls,
        model: HQTransformer,
        condition: Tensor | None,
        seeds: Tensor,
        params: SamplingParams,
        *,
        given: Tensor | None = None,
        guidance: Guidance | None = None,
        known: Known | None = None,
        engine: Engine | None = None,
        options: EngineOptions | None = None,
        tables: StepTables | None = None,
    ) -> Drawing:
        """Checks, and allocates everything. Arguments and errors as for :func:`draw_codes`; ``given``: top codes."""
        config, batch, rows = model.config, len(seeds), len(seeds)
        params.check(config)
        if guidance is not None:
            check_guided(config, condition, guidance)
            rows, condition = BRANCHES * batch, torch.cat([cast(Tensor, condition), guidance.condition])
        if config.scrambled_middle:
            raise ValueError("scrambled_middle: this model needs codes not drawn yet; it can only be evaluated")
        local_BTN = torch.zeros(rows, config.num_steps, config.num_local, dtype=torch.int64, device=seeds.device)
        if given is not None:
            local_BTN.unflatten(0, (-1, batch))[..., :1] = check_given(given, config, batch)
        draw = _Draw.on_device(params, seeds, guidance, _noise_offset(config), config)
        options = options or EngineOptions()
        options = replace(options, fused_draw=options.fused_draw and not params.filtered and guidance is None)
        step = make_step(model, rows, engine, options, tables)
        kinds = {"guidance": guidance is not None, "codes to keep": known is not None}
        head = WholeHead.if_asked_for(model, rows, options, unlike=[kind for kind, asked in kinds.items() if asked])
        kept = None if known is None else known.steps(config, batch)
        whole = frozenset[int]() if kept is None else kept.whole()
        return cls(config, step, draw, condition, local_BTN, given is not None, head, kept, whole)

    def run(self, on_step: OnStep | None = None, steps: range | None = None) -> None:
        """Draw everything, from the first step on; may be called again. A step is the body at one position, then the
        head's groups in order, each drawn. ``steps``: some alone."""
        for cache in self.step.caches:
            cache.reset()
        with threads_for(len(self.local_BTN) * drawing_flops(self.config)):
            for index in steps or range(self.config.num_steps):
                h_BD, local_BN = self.step.body(index, self.condition, self.local_BTN), self.local_BTN[:, index]
                if self.known is not None and index in self.whole:
                    self.known.write(local_BN, index, 0, self.config.num_local)
                elif self.whole_head is not None:
                    self.whole_head(h_BD, local_BN, **self.draw.all_levels(index), keep_top=self.keep_top)
                else:
                    self._draw_groups(h_BD, local_BN, index)
                if on_step is not None:
                    on_step()

    def _draw_groups(self, h_BD: Tensor, local_BN: Tensor, index: int) -> None:
        for group in self.config.groups:
            if self.keep_top and group == range(1):
                self.step.skip(h_BD)
                continue
            for part in self.step.head(h_BD, local_BN, group):
                if not self.keep_top or part.first > 0:
                    count = self.draw(part, local_BN, index)
                    if self.known is not None:
                        self.known.write(local_BN, index, part.first, count)

    def load(
        self,
        condition: Tensor | None,
        seeds: Tensor,
        params: SamplingParams,
        given: Tensor | None = None,
        guidance: Guidance | None = None,
        known: Known | None = None,
    ) -> None:
        """Others of the same shapes and kinds from now on, in the same memory."""
        batch = len(self.draw.seeds)
        self.draw.seeds.copy_(seeds)
        for own, other in ((0, condition), (batch, None if guidance is None else guidance.condition)):
            if self.condition is not None and other is not None:
                self.condition[own : own + batch].copy_(other)
        if given is not None:
            self.local_BTN.unflatten(0, (-1, batch))[..., :1].copy_(check_given(given, self.config, batch))
        if self.known is not None and known is not None:
            for buffer, kept in zip(self.known, known.steps(self.config, batch), strict=True):
                buffer.copy_(kept)
        self.draw.load(params, guidance, self.config)

    def maps(self) -> tuple[Tensor, ...]:
        """The codes drawn, int64 [B, h, w] a level."""
        return to_maps(self.local_BTN[: len(self.draw.seeds)], self.config.side, self.config.level_widths)


@dataclass(frozen=True)
class _Draw:
    """Draws codes with everything that it needs on the device, so that inside the loop nothing is sent there."""

    seeds: Tensor
    numbers: Tensor
    """0, 1, 2, ...: steps and positions."""
    first_step: int
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    invalid: Tensor
    guidance: Tensor | None
    """Scales [T, levels, B]."""

    @classmethod
    def on_device(
        cls,
        params: SamplingParams,
        seeds: Tensor,
        guidance: Guidance | None,
        first_step: int,
        config: TransformerConfig,
    ) -> _Draw:
        device = seeds.device
        numbers = torch.arange(first_step + config.num_steps + config.num_local, dtype=torch.int64, device=device)
        temperature, top_k, top_p = (value.to(device) for value in _numbers(params, config))
        invalid = torch.zeros((), dtype=torch.bool, device=device)
        scales = None if guidance is None else guidance.of_draws(config)
        return cls(seeds, numbers, first_step, temperature, top_k, top_p, invalid, scales)

    def load(self, params: SamplingParams, guidance: Guidance | None, config: TransformerConfig) -> None:
        """Other parameters from now on, in the same memory."""
        if self.guidance is not None and guidance is not None:
            self.guidance.copy_(guidance.of_draws(config))
        for own, value in zip((self.temperature, self.top_k, self.top_p), _numbers(params, config), strict=True):
            own.copy_(send(value, own.device))

    def all_levels(self, index: int) -> dict[str, Tensor]:
        """What a draw of every level reads at a step, by name."""
        step = self.numbers[self.first_step + index]
        filters = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {"seeds": self.seeds, "step": step, "invalid": self.invalid, **filters}

    def __call__(self, part: LevelLogits | LevelFeatures, local_BN: Tensor, index: int) -> int:
        """Draw the codes of a group that are of one level, into ``local_BN``; how many an image."""
        positions = (part.x if isinstance(part, LevelFeatures) else part.logits).shape[1]
        options: dict[str, Any] = {
            "temperature": self.temperature[part.level],
            "seeds": self.seeds,
            "step": self.numbers[self.first_step + index],
            "position": self.numbers[part.first],
            "out": local_BN[:, part.first : part.first + positions],
            "invalid": self.invalid,
        }
        if isinstance(part, LevelFeatures):
            draw_from_head(part.x, part.weight, **options)
        else:
            options |= {"top_k": self.top_k[part.level], "top_p": self.top_p[part.level]}
            sample_logits(part.logits, guidance=self._scales(part.level, index), **options)
        return positions

    def _scales(self, level: int, index: int) -> Tensor | None:
        """Of a level's draw at a step, [B]."""
        return None if self.guidance is None else self.guidance[index, level]


def _numbers(params: SamplingParams, config: TransformerConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Temperature fp32, top-k int64 and top-p fp32, [levels]; what is off keeps everything."""
    top_k = [k or size for k, size in zip(params.top_k, config.codebook_sizes, strict=True)]
    top_p = [1.0 if p is None else p for p in params.top_p]
    columns = ((params.temperature, torch.float32), (top_k, torch.int64), (top_p, torch.float32))
    temperature, k, p = (torch.tensor(values, dtype=dtype, device="cpu") for values, dtype in columns)
    return temperature, k, p


def _noise_offset(config: TransformerConfig) -> int:
    """A refiner draws with the seeds of the prior before it: its steps are numbered on, so that no noise is reused."""
    return config.prefix_length if config.condition == "codes" else 0


def check_given(given: Tensor, config: TransformerConfig, batch: int) -> Tensor:
    if config.decoding == "global":
        raise ValueError("given_top_codes: this transformer draws one level; there is nothing left to draw")
    if len(given) != batch:
        raise ValueError(f"given_top_codes: expected {batch} maps; got {len(given)}")
    return to_local([read_level("given_top_codes", given, config.side, config.codebook_sizes[0])], config.side)

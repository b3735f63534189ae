"""Draws and decodes batches with a checkpoint's models: by captured graphs on a GPU, step by step elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.engine.batches import Cutter
from hqtvae_fast.engine.capture import CaptureError
from hqtvae_fast.engine.decoding import decode_codes
from hqtvae_fast.engine.fused_step import make_tables
from hqtvae_fast.engine.graph import DecodeReplay, DrawReplay
from hqtvae_fast.engine.graph_cache import GraphCache
from hqtvae_fast.engine.loop import OnStep, SamplingParams, draw_codes
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.engine.step import StepOptions
from hqtvae_fast.engine.tables import StepTables
from hqtvae_fast.hardware import fp32_products
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.prepared import Prepared
from hqtvae_fast.modes import inference, ordinary
from hqtvae_fast.ops.made import Made, weights_of

Codes = tuple[Tensor, ...]


class Executor:
    """``models``: the transformers in drawing order, a second one the refiner of the first one's top codes.

    With graphs, a replay on a CPU is a plain call over the same static buffers. What cannot be captured is run step by
    step from then on, and a warning says so.
    """

    def __init__(
        self,
        models: Sequence[HQTransformer],
        vae: HQVAE,
        device: torch.device,
        options: EngineOptions | None = None,
    ) -> None:
        self.models, self.vae, self.device = list(models), vae, device
        self.options = options = options or EngineOptions()
        self._tables: list[Made[StepTables]] = [Made() for _ in self.models]
        wanted = device.type == "cuda" if options.graphs is None else options.graphs
        self.graphs = GraphCache(device) if wanted else None
        self._addresses: list[int] | None = None
        for index in range(len(self.models)):
            self.tables(index)

    def tables(self, index: int) -> StepTables | None:
        """Of a model's weights as they are; None without that option, and where the model's modules must be called."""
        model = self.models[index]
        if not self.options.tables or model.altered() is not None:
            return None
        with self._products():
            return self._tables[index].of(lambda: make_tables(model), *weights_of(model))

    def doubt(self) -> None:
        """Make everything again that was made from weights, when it is next needed."""
        for model in (*self.models, self.vae):
            model.doubt()
        for tables in self._tables:
            tables.doubt()

    def _keep_captures_right(self) -> None:
        """What was made from weights is made again in place, where a capture reads it; captures are given up where
        anything has moved: weights (another device, ``weight.data = ...``), or what is made of them."""
        assert self.graphs is not None
        tables = [made for index in range(len(self.models)) if (made := self.tables(index)) is not None]
        addresses = [address for model in (*self.models, self.vae) for address in model.addresses()]
        addresses += [tensor.data_ptr() for made in tables for tensor in made.tensors]
        if self._addresses not in (None, addresses):
            self.graphs.clear()
        self._addresses = addresses

    def draw(
        self,
        condition: Tensor | None,
        seeds: Tensor,
        params: Sequence[SamplingParams],
        given: Tensor | None,
        invalid: Tensor,
        on_step: OnStep,
    ) -> Codes:
        """Codes int64 [B, h, w] of all levels that the models know: top codes are drawn, or kept if ``given``.

        One entry of ``params`` a model; ``invalid``, a bool scalar, is set where logits were NaN.
        """
        prior = self.models[0].config
        if prior.decoding != "global":
            return self._draw_with(0, condition, seeds, params[0], given, invalid, on_step)
        codes: Codes | None = None if given is None else (given,)
        for index, model in enumerate(self.models):
            if model.config.condition == "codes":
                assert codes is not None
                codes += self._draw_with(index, codes[0].flatten(1), seeds, params[index], None, invalid, on_step)
            elif codes is None:
                codes = self._draw_with(index, condition, seeds, params[index], None, invalid, on_step)
        assert codes is not None
        return codes

    def _draw_with(
        self,
        index: int,
        condition: Tensor | None,
        seeds: Tensor,
        params: SamplingParams,
        given: Tensor | None,
        invalid: Tensor,
        on_step: OnStep,
    ) -> Codes:
        model, batch = self.models[index], len(seeds)
        fused_draw = self.options.fused_draw and not params.filtered
        options = StepOptions(self.tables(index), fused_draw, self.options.dependent_launch, self.options.skip_query)
        what = ("top codes given" if given is not None else "all codes", "fused draw" if fused_draw else "any draw")
        with self._products():
            replay = self._captured(
                model,
                ("draw", index, batch, *what),
                lambda: DrawReplay(model, batch, given=given is not None, options=options),
            )
            if replay is None:
                how: dict[str, Any] = {"given_top_codes": given, "on_step": on_step, "invalid": invalid}
                return draw_codes(model, condition, seeds, params, options=options, **how)
            codes = replay(condition, seeds, params, given, invalid)
        for _ in range(model.config.num_steps):  # issued all at once
            on_step()
        return codes

    def decode(self, codes: Sequence[Tensor], count: int, *, as_bytes: bool = False) -> Tensor:
        """Images of the first ``count`` rows, as :func:`decode_codes` gives them; finer levels may be missing."""
        missing = self.vae.config.num_levels - len(codes)
        if missing:
            warnings.warn(
                "the checkpoint draws top codes only (give a refiner for the rest): pictures are coarse", stacklevel=3
            )
        present = [level[:count] for level in codes]
        return self._decode([*present, *[None] * missing], len(codes[0]), as_bytes)

    @inference()
    def decode_all(self, codes: Sequence[Tensor | None], cutter: Cutter, *, as_bytes: bool = False) -> Tensor:
        """Images on the CPU of codes [N, h, w] a level from any device, None where one is left out: captured in the
        cutter's batches, else all at once, as :func:`decode_codes` cuts them."""
        if self.graphs is None:
            cutter = Cutter(cutter.total, cutter.total)
        parts, start = [], 0
        while start < cutter.total:
            batch = cutter.next(start)
            part = [None if level is None else level[batch.start : batch.stop] for level in codes]
            parts.append(self._decode(part, batch.size, as_bytes).cpu())
            start = batch.stop
        return ordinary(torch.cat(parts))

    def _decode(self, codes: Sequence[Tensor | None], size: int, as_bytes: bool) -> Tensor:
        """``size``: of the capture, at least as many as there are codes."""
        present = [level is not None for level in codes]
        levels = [index for index, here in enumerate(present) if here]
        with self._products():
            replay = self._captured(
                self.vae,
                ("decode", size, f"levels {levels}", "bytes" if as_bytes else "numbers"),
                lambda: DecodeReplay(self.vae, size, present=present, as_bytes=as_bytes),
            )
            if replay is not None:
                return replay(codes)
            here = [None if level is None else level.to(self.device, torch.int64) for level in codes]
            return decode_codes(self.vae, here, as_bytes=as_bytes)

    def _products(self) -> AbstractContextManager[None]:
        return fp32_products(self.device, self.options.tf32)

    def _captured(
        self, model: Prepared, key: tuple[str | int, ...], make: Callable[[], DrawReplay | DecodeReplay]
    ) -> Any:
        """The capture, or None where there is to be none. Hooks would run once, while it is made."""
        if self.graphs is None or model.altered() is not None:
            return None
        self._keep_captures_right()
        try:
            return self.graphs.get(key, make)
        except CaptureError as error:
            warnings.warn(f"{error}: running step by step from now on, which is slower", stacklevel=4)
            self.graphs.clear()
            self.graphs = None
            return None

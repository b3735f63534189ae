"""A batch's drawing, or its decoding, over named static buffers: captured once as a CUDA graph, then replayed.

The loop of :mod:`hqtvae_fast.engine.loop` is what is captured, all steps of it with the draws inside. Whatever a
request may change without changing a shape (conditions, seeds, temperature, top-k, top-p, given top codes) lies in a
buffer that a replay reads. Drawing and decoding are two graphs, so that they can run on two streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.engine.capture import Replay
from hqtvae_fast.engine.decoding import chunk_size, decode_codes
from hqtvae_fast.engine.loop import SamplingParams, StepRunner, check_given
from hqtvae_fast.engine.step import Engine, StepOptions
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.modes import inference


class DrawReplay:
    """:func:`hqtvae_fast.engine.draw_codes` for one batch size; ``given``: whether top codes are given. With a fused
    draw among the options there can be no top-k and no top-p, neither now nor later."""

    def __init__(
        self,
        model: HQTransformer,
        batch: int,
        *,
        given: bool = False,
        engine: Engine | None = None,
        options: StepOptions | None = None,
    ) -> None:
        config, device = model.config, model.norm.weight.device
        self.config, self.batch = config, batch
        self.fused_draw = options is not None and options.fused_draw
        self.seeds = torch.zeros(batch, dtype=torch.int64, device=device)
        self.condition = self._condition_buffer(device)
        levels = config.num_levels
        everything = SamplingParams((1.0,) * levels, (None,) * levels, (None,) * levels)
        top = torch.zeros(batch, config.num_steps, 1, dtype=torch.int64, device=device) if given else None
        with inference():
            how: dict[str, Any] = {"given": top, "engine": engine, "options": options}
            self.run = StepRunner.make(model, self.condition, self.seeds, everything, **how)
            self.replay = Replay(self._work, device)

    @property
    def bytes(self) -> int:
        """Of memory that the capture holds, its keys and values among it."""
        return self.replay.bytes + sum(cache.keys.nbytes + cache.values.nbytes for cache in self.run.step.caches)

    def _condition_buffer(self, device: torch.device) -> Tensor | None:
        shapes = {"none": None, "class": (self.batch,)}
        shape = shapes.get(self.config.condition, (self.batch, self.config.prefix_length))
        return None if shape is None else torch.zeros(shape, dtype=torch.int64, device=device)

    def _work(self) -> None:
        self.run.draw.invalid.zero_()
        self.run.all_steps()

    @inference()
    def __call__(
        self,
        condition: Tensor | None,
        seeds: Tensor,
        params: SamplingParams,
        given_top_codes: Tensor | None = None,
        invalid: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Codes int64 [B, h, w] a level, the caller's own. Arguments and errors as for ``draw_codes``; ``invalid`` is a
        bool scalar that is set where logits were NaN."""
        params.check(self.config)
        if self.fused_draw and params.filtered:
            raise ValueError("this capture draws inside the head's product: expected neither top_k nor top_p; got some")
        if len(seeds) != self.batch or (given_top_codes is not None) != self.run.keep_top:
            wanted = f"{self.batch} seeds, top codes {'given' if self.run.keep_top else 'drawn'}"
            got = f"{len(seeds)}, top codes {'drawn' if given_top_codes is None else 'given'}"
            raise ValueError(f"this capture is for {wanted}; got {got}")
        if self.condition is not None and (condition is None or condition.shape != self.condition.shape):
            found = None if condition is None else list(condition.shape)
            raise ValueError(f"condition: expected {list(self.condition.shape)}; got {found}")
        given = None if given_top_codes is None else check_given(given_top_codes, self.config, self.batch)
        with self.replay.turn():
            self.seeds.copy_(seeds)
            if self.condition is not None and condition is not None:
                self.condition.copy_(condition)
            if given is not None:
                self.run.local_BTN[:, :, :1].copy_(given)
            self.run.draw.load(params, self.config)
            self.replay(self._work)
            if invalid is not None:
                invalid |= self.run.draw.invalid
            return tuple(level.clone() for level in self.run.maps())


class DecodeReplay:
    """:func:`hqtvae_fast.engine.decode_codes` for up to ``batch`` images; ``present``: which of the VAE's levels have
    codes, by default all."""

    def __init__(
        self, vae: HQVAE, batch: int, *, present: Sequence[bool] | None = None, as_bytes: bool = False
    ) -> None:
        sides, device = vae.config.level_sides, vae.post_quant_conv.weight.device
        self.codes = [
            torch.zeros(batch, side, side, dtype=torch.int64, device=device) if here else None
            for side, here in zip(sides, present or [True] * len(sides), strict=True)
        ]
        self.vae, self.batch, self.as_bytes = vae, batch, as_bytes
        self.images: Tensor | None = None
        # How much memory is free is asked once, here: a replay has to do what was captured. What torch keeps for reuse
        # is not free to the driver, whom it asks.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        self.chunk = min(batch, chunk_size(vae, device))
        with inference():
            self.replay = Replay(self._work, device)

    @property
    def bytes(self) -> int:
        """Of memory that the capture holds."""
        return self.replay.bytes

    def _work(self) -> None:
        self.images = decode_codes(self.vae, self.codes, chunk=self.chunk, as_bytes=self.as_bytes)

    @inference()
    def __call__(self, codes: Sequence[Tensor | None]) -> Tensor:
        """Images, float32 [B, 3, R, R] in [0, 1] or uint8 [B, R, R, 3], the caller's own, of codes [B, h, w] from any
        device. Rows of the buffers beyond B keep what an earlier call left: an image depends on its codes alone."""
        shapes = [None if level is None else tuple(level.shape) for level in codes]
        count = next(shape[0] for shape in shapes if shape is not None)
        wanted = [None if own is None else (count, *own.shape[1:]) for own in self.codes]
        if shapes != wanted or not 1 <= count <= self.batch:
            own_shapes = [None if own is None else list(own.shape) for own in self.codes]
            raise ValueError(f"this capture is for codes {own_shapes}, or fewer images; got {shapes}")
        with self.replay.turn():
            for own, level in zip(self.codes, codes, strict=True):
                if own is not None and level is not None:
                    own[:count].copy_(level, non_blocking=True)
            self.replay(self._work)
            assert self.images is not None
            return self.images[:count].clone()

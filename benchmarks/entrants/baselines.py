"""What ours is compared with end to end, all with the same weights in plain torch: the released protocol, torch as it
is, and torch.compile. The released implementation itself is :mod:`benchmarks.entrants.released`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.entrants.ours import random_condition
from benchmarks.entrants.plain_decoder import PlainDecoder
from benchmarks.entrants.plain_transformer import NotWrittenDown, PlainTransformer
from hqtvae_fast.checkpoint import Checkpoint
from hqtvae_fast.engine import SamplingParams
from hqtvae_fast.model.pyramid import to_maps

COMPILE_MODE = "max-autotune"


class Plain:
    """``kind``: one of :data:`KINDS`. Computes in ``dtype``, but for "paper", which draws under autocast to fp16 on a
    GPU and decodes in fp32, one image at a time, as the paper's figures were taken."""

    def __init__(
        self, kind: str, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, params: SamplingParams
    ) -> None:
        if checkpoint.transformer is None or checkpoint.refiner is not None:
            raise NotWrittenDown("plain torch: expected one transformer")
        self.kind, self.name, self.device, self.params = kind, KINDS[kind], device, params
        paper = kind == "paper"
        self.warm_ups = 3 if kind == "compile" else 1  # it compiles, then records a CUDA graph, then replays it
        self._autocast = paper and device.type == "cuda"
        self._cache_dtype = torch.float16 if self._autocast else torch.float32 if paper else dtype
        weights = torch.float32 if paper else dtype
        self.model = checkpoint.transformer.to(device=device, dtype=weights).eval()
        self._decoder = PlainDecoder(checkpoint.vae.to(device=device, dtype=weights).eval())
        self._decode: Callable[..., Tensor] = self._decoder
        if kind == "compile":
            self._decode = torch.compile(self._decoder.pixels, mode=COMPILE_MODE, dynamic=False)
        half = str(dtype).removeprefix("torch.")
        self.precision = {True: "fp16 AR, fp32 decode", False: "float32"}[self._autocast] if paper else half
        self.steps = self.model.config.num_steps
        self.parameters = sum(value.numel() for value in self.model.parameters())
        self._transformers: dict[int, PlainTransformer] = {}
        self._generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def draw(self, count: int) -> tuple[Tensor, ...]:
        """Code maps of each level, top first."""
        config = self.model.config
        condition = random_condition(config, count, self._generator)
        with self._precision():
            local_BTN = self._transformer(count).draw(None if condition is None else condition.to(self.device))
        return to_maps(local_BTN, config.side, config.level_widths)

    @torch.no_grad()
    def decode(self, codes: tuple[Tensor, ...]) -> Tensor:
        if self.kind == "paper":
            parts = [self._decode(one) for one in zip(*(level.split(1) for level in codes), strict=True)]
        else:
            parts = [self._decode(list(codes))]
        return (0.5 * torch.cat(parts).float() + 0.5).clamp(0, 1)

    def _transformer(self, count: int) -> PlainTransformer:
        """One a batch size, with caches of its own."""
        if count not in self._transformers:
            made = PlainTransformer(self.model, count, self.params, self._cache_dtype)
            self._transformers[count] = made.compile(COMPILE_MODE) if self.kind == "compile" else made
        return self._transformers[count]

    def _precision(self) -> Any:
        return torch.autocast("cuda", torch.float16) if self._autocast else contextlib.nullcontext()


KINDS = {"paper": "paper's protocol", "eager": "plain torch", "compile": "torch.compile"}
"""By what ``--baselines`` calls them."""


def default_baselines(device: torch.device) -> list[str]:
    """All on a GPU. On a CPU compiling takes minutes, and what it gains there is known from a run that asks for it."""
    return list(KINDS) if device.type == "cuda" else ["paper", "eager"]

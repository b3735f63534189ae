"""A batch's drawing, or its decoding, over named static buffers: captured once as a CUDA graph, then replayed.

The loop of :mod:`hqtvae_fast.engine.loop` is what is captured, all steps of it with the draws inside. Whatever a
request may change without changing a shape (conditions, seeds, temperature, top-k, top-p, given top codes) lies in a
buffer that a replay reads. Drawing and decoding are two graphs, so that they can run on two streams.

A capture keeps its activations in a memory pool of its own for as long as it lives. Three runs come before it, on a
side stream: in the first, libraries choose their algorithms and take their workspaces, and Triton compiles. No setting
of the allocator is needed or changed; where captures of many sizes leave too little in one piece, torch's own
``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`` is for that, and the cap on all captures together is
:class:`hqtvae_fast.engine.graph_cache.GraphCache`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hqtvae_fast.engine.decoding import chunk_size, decode_codes
from hqtvae_fast.engine.loop import SamplingParams, StepRunner, check_given
from hqtvae_fast.engine.step import Engine, StepOptions
from hqtvae_fast.model import HQVAE, HQTransformer

WARM_UPS = 3


class CaptureError(RuntimeError):
    """Something in the work cannot be captured; the message names the operator."""


class Replay:
    """``work``, which reads and writes static buffers alone: a graph on a GPU, a plain call elsewhere."""

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self.work = work
        self.bytes = 0
        """Of memory that the capture holds."""
        self._graph = None if device.type != "cuda" else self._capture(device)

    def __call__(self) -> None:
        if self._graph is None:
            self.work()
        else:
            self._graph.replay()

    def _capture(self, device: torch.device) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.work()
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_reserved(device)
        graph, watch = torch.cuda.CUDAGraph(), _LastOperator()
        try:
            # Other threads (a loader's, say) may go on using the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"), watch:
                self.work()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            first = str(error).strip().splitlines()[0]
            raise CaptureError(f"cannot be captured in a CUDA graph: {watch.name} ({first})") from error
        self.bytes = max(0, torch.cuda.memory_reserved(device) - before)
        return graph


class _LastOperator(TorchDispatchMode):
    """Remembers what was called last."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "nothing yet"

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.name = str(function)
        return function(*args, **(kwargs or {}))


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
        with torch.inference_mode():
            how: dict[str, Any] = {"given": top, "engine": engine, "options": options}
            self.run = StepRunner.make(model, self.condition, self.seeds, everything, **how)
            self.replay = Replay(self._work, device)

    @property
    def bytes(self) -> int:
        return self.replay.bytes

    def _condition_buffer(self, device: torch.device) -> Tensor | None:
        shapes = {"none": None, "class": (self.batch,)}
        shape = shapes.get(self.config.condition, (self.batch, self.config.prefix_length))
        return None if shape is None else torch.zeros(shape, dtype=torch.int64, device=device)

    def _work(self) -> None:
        self.run.draw.invalid.zero_()
        self.run.all_steps()

    @torch.inference_mode()
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
        self.seeds.copy_(seeds)
        if self.condition is not None:
            if condition is None or condition.shape != self.condition.shape:
                found = None if condition is None else list(condition.shape)
                raise ValueError(f"condition: expected {list(self.condition.shape)}; got {found}")
            self.condition.copy_(condition)
        if given_top_codes is not None:
            self.run.local_BTN[:, :, :1].copy_(check_given(given_top_codes, self.config, self.batch))
        self.run.draw.load(params, self.config)
        self.replay()
        if invalid is not None:
            invalid |= self.run.draw.invalid
        return tuple(level.clone() for level in self.run.maps())


class DecodeReplay:
    """:func:`hqtvae_fast.engine.decode_codes` for one batch size; ``levels``: how many of the VAE's have codes."""

    def __init__(self, vae: HQVAE, batch: int, *, levels: int | None = None, as_bytes: bool = False) -> None:
        sides, device = vae.config.level_sides, vae.post_quant_conv.weight.device
        present = len(sides) if levels is None else levels
        self.codes = [torch.zeros(batch, side, side, dtype=torch.int64, device=device) for side in sides[:present]]
        self.vae, self.missing, self.as_bytes = vae, len(sides) - present, as_bytes
        self.images: Tensor | None = None
        # How much memory is free is asked once, here: a replay has to do what was captured.
        self.chunk = min(batch, chunk_size(vae, device))
        with torch.inference_mode():
            self.replay = Replay(self._work, device)

    @property
    def bytes(self) -> int:
        return self.replay.bytes

    def _work(self) -> None:
        codes = [*self.codes, *[None] * self.missing]
        self.images = decode_codes(self.vae, codes, chunk=self.chunk, as_bytes=self.as_bytes)

    @torch.inference_mode()
    def __call__(self, codes: Sequence[Tensor]) -> Tensor:
        """Images, float32 [B, 3, R, R] in [0, 1] or uint8 [B, R, R, 3], the caller's own."""
        for own, level in zip(self.codes, codes, strict=True):
            if level.shape != own.shape:
                raise ValueError(f"this capture is for codes {list(own.shape)}; got {list(level.shape)}")
            own.copy_(level)
        self.replay()
        assert self.images is not None
        return self.images.clone()

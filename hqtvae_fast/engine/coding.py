"""Codes to pixels and pixels to codes: as the model does it, in chunks that fit memory, and captured as CUDA graphs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from hqtvae_fast.engine.batches import decoding_memory
from hqtvae_fast.engine.graph import CaptureError, Replay
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.hardware import cudnn_benchmark
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.images import check_images, refuse_invalid
from hqtvae_fast.model.prepared import ALTERED
from hqtvae_fast.modes import inference, ordinary
from hqtvae_fast.plan import Plan, using
from hqtvae_fast.threads import SMALL, decoding_flops, threads_for

Encode = Callable[[Tensor], tuple[Tensor, ...]]

# Of the memory that is free when decoding starts: the rest is left to cuDNN's scratch and to other work. Not yet
# measured on a GPU.
GPU_SHARE = 0.5
# On a CPU a chunk's maps should stay near the caches: two images are enough rows for the convolutions. Of small images,
# as many as are small work together, or what lies between operations costs more than they: 16 of the demo model take
# 0.09 s of CPU in eights and 0.14 s in twos (bf16 and fp32, EPYC), with the same pixels.
CPU_CHUNK = 2


def chunk_size(vae: HQVAE, device: torch.device, budget: int | None = None) -> int:
    """How many images to decode at once: as many as ``budget`` bytes of activations allow, by default half of a GPU's
    free memory, with maps short enough for 32-bit indices; on a CPU, without a budget, what its caches like. ValueError
    on a budget too small for one."""
    if budget is None and device.type != "cuda":
        return max(CPU_CHUNK, int(SMALL // decoding_flops(vae.config)))
    memory = decoding_memory(vae.config, vae.post_quant_conv.weight.dtype)
    if budget is None:
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, min(memory.largest_chunk(int(free * GPU_SHARE)), memory.most_short))
    chunk = memory.largest_chunk(budget)
    if chunk < 1:
        raise ValueError(f"budget: expected at least {memory.total(1):,} bytes, for one image; got {budget:,}")
    return chunk


def even_chunk(images: int, most: int) -> int:
    """Images at once where at most so many can be: no chunk much smaller than the others, which would leave most of a
    GPU idle (256 of at most 255 are 128 and 128)."""
    return math.ceil(images / math.ceil(images / most))


@inference()
def decode_codes(
    vae: HQVAE,
    codes: Sequence[Tensor | None],
    *,
    chunk: int | None = None,
    budget: int | None = None,
    as_bytes: bool = False,
) -> Tensor:
    """Images of codes [B, h, w] a level (None leaves one out): float32 [B, 3, R, R] in [0, 1], or ``as_bytes`` uint8
    [B, R, R, 3], which are a quarter of what has to leave a GPU.

    ``chunk``: images decoded at once; by default :func:`chunk_size` with ``budget`` bytes, on a GPU in even chunks.
    """
    present = next(level for level in codes if level is not None)
    size = chunk_size(vae, present.device, budget) if chunk is None else chunk
    if chunk is None and present.is_cuda:
        size = even_chunk(len(present), size)
    parts = []
    for start in range(0, len(present), size):
        part = [None if level is None else level[start : start + size] for level in codes]
        with threads_for(decoding_flops(vae.config)):
            if as_bytes:
                parts.append(vae.decode_bytes(part))
            else:
                parts.append(vae.decode(part).float().mul_(0.5).add_(0.5).clamp_(0, 1))
    return torch.cat(parts)


class DecodeReplay:
    """:func:`hqtvae_fast.engine.decode_codes` for up to ``batch`` images; ``present``: which of the VAE's levels have
    codes, by default all; ``chunk``: images decoded at once."""

    def __init__(
        self,
        vae: HQVAE,
        batch: int,
        *,
        present: Sequence[bool] | None = None,
        as_bytes: bool = False,
        chunk: int | None = None,
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
        most = chunk_size(vae, device) if chunk is None else chunk
        self.chunk = even_chunk(batch, most) if chunk is None and device.type == "cuda" else min(batch, most)
        with inference():
            self.replay = Replay(self._work, device, buffers=self.codes)

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


# ------------------------------------------------------------------------------------------------------------- encoding


class EncodeReplay:
    """:meth:`hqtvae_fast.model.HQVAE.encode` for up to ``batch`` images over a static buffer. CaptureError where the
    work cannot be captured. Computes as ``plan`` says."""

    def __init__(self, vae: HQVAE, batch: int, plan: Plan | None = None) -> None:
        R, weight = vae.config.resolution, vae.quant_conv.weight
        shape = (batch, 3, R, R)
        self.images = torch.zeros(shape, dtype=torch.float32, device=weight.device).contiguous(
            memory_format=torch.channels_last
        )
        self.invalid = torch.zeros(batch, dtype=torch.bool, device=weight.device)
        self.vae, self.plan = vae, plan
        self.codes: tuple[Tensor, ...] = ()
        self._addresses: list[int] = []
        self._capture()

    @inference()
    def _capture(self) -> None:
        self._addresses, device = self.vae.addresses(), self.images.device
        with using(self.plan), cudnn_benchmark(device, _options(self.plan, len(self.images)).cudnn_benchmark):
            self.replay = Replay(self._work, device, buffers=(self.images, self.invalid))

    @property
    def bytes(self) -> int:
        """Of memory that the capture holds."""
        return self.replay.bytes

    def _work(self) -> None:
        self.invalid.zero_()
        self.codes = self.vae.encode(self.images, invalid=self.invalid)

    @inference()
    def __call__(self, images: Tensor, *, invalid: Tensor | None = None) -> tuple[Tensor, ...]:
        """Codes int64 [B, h, w] a level, top first, the caller's own, of images [B, 3, R, R] in [-1, 1] from any
        device; ``invalid`` and errors as for the model's. Images on the CPU are looked at before they are copied. Rows
        of the buffer beyond B keep what an earlier call left: an image's codes depend on it alone."""
        count, shape = len(images), self.images.shape
        if images.shape[1:] != shape[1:] or not 1 <= count <= len(self.images):
            wanted = f"[1..{shape[0]}, 3, {shape[2]}, {shape[3]}]"
            raise ValueError(f"images: this capture is for {wanted}; got {list(images.shape)}")
        check_images(images, shape[2])
        if self.vae.addresses() != self._addresses:  # weights have moved
            self._capture()
        with self.replay.turn(), using(self.plan):
            self.images[:count].copy_(images, non_blocking=True)
            self.replay(self._work)
            if invalid is None:
                refuse_invalid(images, self.invalid[:count])
            else:
                invalid |= self.invalid[:count]
            codes = [level[:count].clone() for level in self.codes]
        return tuple(map(ordinary, codes))


def encode_images(vae: HQVAE, images: Tensor, plan: Plan | None = None) -> tuple[Tensor, ...]:
    """:meth:`hqtvae_fast.model.HQVAE.encode` of images [B, 3, R, R] in [-1, 1] from any device, by ``plan``."""
    with using(plan), threads_for(decoding_flops(vae.config)):
        return vae.encode(images.to(vae.quant_conv.weight.device, torch.float32, non_blocking=True))


def make_encoder(vae: HQVAE, batch: int, plan: Plan | None = None) -> Encode:
    """What encodes images [B, 3, R, R] for B up to ``batch`` as ``plan`` says: by a capture (without a word of it, on a
    GPU), else by the model. What cannot be captured is run as it is, and a warning says so."""
    device, altered = vae.quant_conv.weight.device, vae.altered()
    captures = _options(plan, batch).captures(device)
    if captures and altered is not None:
        warnings.warn(f"{altered}: {ALTERED}: encoding step by step, which is slower", stacklevel=2)
    elif captures:
        try:
            return EncodeReplay(vae, batch, plan)
        except CaptureError as error:
            warnings.warn(f"{error}: encoding step by step, which is slower", stacklevel=2)
    return partial(encode_images, vae, plan=plan)


def _options(plan: Plan | None, batch: int) -> EngineOptions:
    return EngineOptions.read("" if plan is None else plan.engine_for(batch))

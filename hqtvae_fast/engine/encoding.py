"""Pictures to codes in batches of one size: captured once as a CUDA graph on a GPU, then replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hqtvae_fast.engine.capture import CaptureError, Replay
from hqtvae_fast.engine.work import decoding_flops
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.images import check_images, refuse_invalid
from hqtvae_fast.model.prepared import ALTERED
from hqtvae_fast.modes import inference, ordinary
from hqtvae_fast.threads import threads_for

Encode = Callable[[Tensor], tuple[Tensor, ...]]


class EncodeReplay:
    """:meth:`hqtvae_fast.model.HQVAE.encode` for up to ``batch`` images over a static buffer. CaptureError where the
    work cannot be captured."""

    def __init__(self, vae: HQVAE, batch: int) -> None:
        R, weight = vae.config.resolution, vae.quant_conv.weight
        shape = (batch, 3, R, R)
        self.images = torch.zeros(shape, dtype=torch.float32, device=weight.device).contiguous(
            memory_format=torch.channels_last
        )
        self.invalid = torch.zeros(batch, dtype=torch.bool, device=weight.device)
        self.vae = vae
        self.codes: tuple[Tensor, ...] = ()
        self._addresses: list[int] = []
        self._capture()

    @inference()
    def _capture(self) -> None:
        self._addresses = self.vae.addresses()
        self.replay = Replay(self._work, self.images.device)

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
        with self.replay.turn():
            self.images[:count].copy_(images, non_blocking=True)
            self.replay(self._work)
            if invalid is None:
                refuse_invalid(images, self.invalid[:count])
            else:
                invalid |= self.invalid[:count]
            codes = [level[:count].clone() for level in self.codes]
        return tuple(map(ordinary, codes))


def encode_images(vae: HQVAE, images: Tensor) -> tuple[Tensor, ...]:
    """:meth:`hqtvae_fast.model.HQVAE.encode` of images [B, 3, R, R] in [-1, 1] from any device."""
    with threads_for(decoding_flops(vae.config)):
        return vae.encode(images.to(vae.quant_conv.weight.device, torch.float32, non_blocking=True))


def make_encoder(vae: HQVAE, batch: int, *, graphs: bool | None = None) -> Encode:
    """What encodes images [B, 3, R, R] for B up to ``batch``: by a capture (``graphs``; None: on a GPU), else by the
    model. What cannot be captured is run as it is, and a warning says so."""
    device = vae.quant_conv.weight.device
    if graphs is None:
        graphs = device.type == "cuda"
    altered = vae.altered()
    if graphs and altered is not None:
        warnings.warn(f"{altered}: {ALTERED}: encoding step by step, which is slower", stacklevel=2)
    elif graphs:
        try:
            return EncodeReplay(vae, batch)
        except CaptureError as error:
            warnings.warn(f"{error}: encoding step by step, which is slower", stacklevel=2)
    return partial(encode_images, vae)

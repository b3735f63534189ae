"""Kernels of a decode on a GPU, found without one, as those of a step are in :mod:`hqtvae_fast.tune.launches`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hqtvae_fast.backend import unasked
from hqtvae_fast.config import VAEConfig
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.calibration import roundable
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.plan import Plan, recording, using
from hqtvae_fast.tune.launches import Call, Calls, Indexing, unread
from hqtvae_fast.tune.sites import _CuDNN, _onto_device

SPAN = torch.tensor([-0.3, 3.0], dtype=torch.float32, device="cpu")
"""Any: of no matter for what is launched."""


def calls_of_decode(
    config: VAEConfig, batch: int, dtype: torch.dtype = torch.bfloat16, *, convolutions: str | None = None
) -> list[Call]:
    """Of codes to bytes, all images at once, over fake tensors. ``convolutions``: the variant of
    :mod:`hqtvae_fast.ops.kernels.conv3x3` by which a plan has those that can be calibrated."""
    with decoding(config, batch, dtype, convolutions=convolutions) as decode, Calls() as calls:
        decode()
    return calls.made


@contextmanager
def decoding(
    config: VAEConfig, batch: int, dtype: torch.dtype, *, convolutions: str | None = None
) -> Iterator[Callable[[], Tensor]]:
    """The decode itself, to be run inside; what is made of weights is there."""
    with torch.inference_mode(False), torch.no_grad(), without_values():
        vae = HQVAE(config).eval()
        vae.set_decoder_dtype(dtype)
    with unasked(), torch.inference_mode(), unread(), FakeTensorMode(), torch.device("cuda"), Indexing(), _CuDNN():
        _onto_device(vae)
        codes = [torch.empty(batch, side, side, dtype=torch.int64) for side in config.level_sides]
        decode = partial(vae.fold().decode_bytes, codes)
        with using(None if convolutions is None else _plan(vae, decode, convolutions)):
            decode()
            yield decode


def _plan(vae: HQVAE, decode: Callable[[], Tensor], variant: str) -> Plan:
    """With all that are calibrated by one variant."""
    for _, layer in roundable(vae):
        layer.span = SPAN
    with recording() as known:
        decode()
    return Plan("tuned", {key: variant for key, (op, _) in known.items() if op == "conv3x3"})

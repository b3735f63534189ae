"""Kernels of a decode on a GPU, found without one, as those of a step are in :mod:`hqtvae_fast.tune.launches`."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hqtvae_fast.backend import unasked
from hqtvae_fast.config import VAEConfig
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.tune.launches import Call, Calls, Indexing, unread
from hqtvae_fast.tune.sites import _CuDNN, _onto_device


def calls_of_decode(config: VAEConfig, batch: int, dtype: torch.dtype = torch.bfloat16) -> list[Call]:
    """Of codes to bytes, all images at once, over fake tensors."""
    with torch.inference_mode(False), torch.no_grad(), without_values():
        vae = HQVAE(config).eval()
        vae.set_decoder_dtype(dtype)
    with unasked(), torch.inference_mode(), unread(), FakeTensorMode(), torch.device("cuda"), Indexing(), _CuDNN():
        _onto_device(vae)
        codes = [torch.empty(batch, side, side, dtype=torch.int64) for side in config.level_sides]
        vae.fold()
        with Calls() as calls:
            vae.decode_bytes(codes)
    return calls.made

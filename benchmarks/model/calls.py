"""Kernels of a decode on a GPU, found without one, as those of a step are in :mod:`hqtvae_fast.tune.launches`."""

from __future__ import annotations

import torch
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
    with torch.inference_mode(False), torch.no_grad(), without_values():
        vae = HQVAE(config).eval()
        vae.set_decoder_dtype(dtype)
    with unasked(), torch.inference_mode(), unread(), FakeTensorMode(), torch.device("cuda"), Indexing(), _CuDNN():
        _onto_device(vae)
        codes = [torch.empty(batch, side, side, dtype=torch.int64) for side in config.level_sides]
        vae.fold()
        plan = None
        if convolutions is not None:
            for _, layer in roundable(vae):
                layer.span = SPAN
            with recording() as known:
                vae.decode_bytes(codes)
            where = [key for key, (op, _) in known.items() if op == "conv3x3"]
            plan = Plan("tuned", dict.fromkeys(where, convolutions))
        with using(plan):
            if plan is not None:
                vae.decode_bytes(codes)  # what is made of weights is made once
            with Calls() as calls:
                vae.decode_bytes(codes)
    return calls.made

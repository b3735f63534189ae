"""Global conditioning's first half, which its second half, the refiner, is trained beside and saved with."""

from __future__ import annotations

import torch

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.config import ConfigError, HQTVAEConfig, TransformerConfig
from hqtvae_fast.model import HQVAE


def open_prior(path: str | None, vae: HQVAE, refiner: TransformerConfig) -> checkpoints.Checkpoint | None:
    """The checkpoint of a prior over top codes that a refiner of this configuration completes; None without a path.

    ConfigError, before anything is trained, unless the model is a refiner, the checkpoint holds a prior, and both are
    on the codes of the same HQ-VAE, weight by weight: a code means nothing to another one.
    """
    if path is None:
        return None
    if refiner.condition != "codes":
        raise ConfigError(
            f"prior: expected a refiner to train (model: decoding: global, condition: codes); got condition:"
            f" {refiner.condition}"
        )
    prior = checkpoints.load(path)
    if prior.transformer is None or prior.transformer.config.decoding != "global" or _is_refiner(prior.config):
        raise ConfigError(f"prior: expected a checkpoint with a prior over top codes; got {path}, {_holds(prior)}")
    if not same_vae(vae, prior.vae):
        raise ConfigError(f"prior: expected a model of the codes of vae; got {path}, on those of another stage 1")
    return prior


def same_vae(left: HQVAE, right: HQVAE) -> bool:
    """Whether both give the same codes and pictures: weight by weight, whatever dtype these are stored in."""
    if left.config != right.config:
        return False
    other = right.state_dict()
    return all(torch.equal(value.float().cpu(), other[key].float().cpu()) for key, value in left.state_dict().items())


def _is_refiner(config: HQTVAEConfig) -> bool:
    return config.transformer is not None and config.transformer.condition == "codes"


def _holds(checkpoint: checkpoints.Checkpoint) -> str:
    if checkpoint.transformer is None:
        return "with stage 1 only"
    if _is_refiner(checkpoint.config):
        return "with a refiner"
    return f"with a transformer of decoding: {checkpoint.transformer.config.decoding}"

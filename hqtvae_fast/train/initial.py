"""Fine-tuning: a run that begins with a checkpoint's weights in place of random ones."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.config import ConfigError
from hqtvae_fast.model import HQVAE, HQTransformer

Model = TypeVar("Model", bound=nn.Module)


def take_vae(vae: HQVAE, path: str | None) -> HQVAE:
    """``vae`` with the weights and codebooks of the checkpoint at ``path``; as it is without one."""
    return vae if path is None else _take(vae, checkpoints.load(path).vae, path)


def take_transformer(transformer: HQTransformer, path: str | None) -> HQTransformer:
    """``transformer`` with the weights of the checkpoint at ``path``; as it is without one. Dropout may differ."""
    if path is None:
        return transformer
    held = checkpoints.load(path)
    found = held.refiner if transformer.config.condition == "codes" and held.refiner is not None else held.transformer
    if found is None:
        raise ConfigError(f"init: expected a checkpoint with stage 2; got {path}, with stage 1 only")
    return _take(transformer, found, path)


def _take(model: Model, found: nn.Module, path: str) -> Model:
    """ConfigError, before anything is changed, unless both have values of the same names and shapes."""
    own, other = model.state_dict(), found.state_dict()
    for name in (*own, *other):
        wanted, got = (tuple(state[name].shape) if name in state else None for state in (own, other))
        if wanted != got:
            raise ConfigError(
                f"init: expected a model of the run's sizes; {path} differs at {name}: expected"
                f" {list(wanted) if wanted else 'no such value'}, got {list(got) if got else 'none'}"
            )
    model.load_state_dict(other)  # converts half precision
    return model

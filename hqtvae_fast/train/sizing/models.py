"""From the ``model`` field of a run to the configuration of what is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from hqtvae_fast.config import (
    BlocksConfig,
    ConfigError,
    HQTVAEConfig,
    TransformerConfig,
    VAEConfig,
    from_dict,
    to_dict,
)
from hqtvae_fast.fields import field_kinds, read, shown
from hqtvae_fast.train.config import merged
from hqtvae_fast.train.presets import Preset, load_preset, preset_names

Config = TypeVar("Config", VAEConfig, TransformerConfig, BlocksConfig)
IN_NO_WEIGHT = {"dropout", "residual_dropout", "attention_dropout", "embedding_dropout"} | {
    "commitment_weight",
    "ema_decay",
    "ema_epsilon",
}
"""Fields of a model that a run may change where it takes over the weights: they are used in training alone."""


def make_vae_config(changes: dict[str, Any]) -> VAEConfig:
    """The paper's HQ-VAE with some fields changed; unknown ones are named."""
    base = to_dict(HQTVAEConfig(transformer=None))
    base["vae"] |= changes
    return from_dict(base).vae


def make_transformer_config(changes: dict[str, Any], vae: VAEConfig) -> TransformerConfig:
    """The paper's HQ-Transformer (S) over this HQ-VAE's codes, with some fields changed.

    With ``decoding: global`` it reads and draws one level: the top map or, with ``condition: codes``, the bottom map
    after a prefix of all top codes.
    """
    base = TransformerConfig(
        codebook_sizes=vae.codebook_sizes,
        side=vae.level_sides[0],
        body=BlocksConfig(num_layers=12, residual_dropout=0.1),
        head=BlocksConfig(num_layers=4, residual_dropout=0.1),
        max_positions=vae.level_sides[0] ** 2,
    )
    data = dataclasses.asdict(base)
    if changes.get("decoding") == "global":
        data |= _one_level(vae, 1 if changes.get("condition") == "codes" else 0)
    parsed = from_dict({"vae": dataclasses.asdict(vae), "transformer": merged(data, changes)}).transformer
    assert parsed is not None
    if parsed.decoding != "global" and parsed.codebook_sizes != vae.codebook_sizes:
        got = f"expected the VAE's {vae.codebook_sizes}, all of its levels; got {parsed.codebook_sizes}"
        raise ConfigError(f"model.codebook_sizes: {got}")
    return parsed


def with_changes(config: Config, changes: Mapping[str, Any], path: str, where: str = "model") -> Config:
    """The configuration of a checkpoint, ``path``, with a run's ``model`` fields on top.

    ConfigError, naming the field, on one that would need other weights: all but ``IN_NO_WEIGHT``.
    """
    kinds, new = field_kinds(type(config)), dict[str, Any]()
    for name, value in changes.items():
        if name not in kinds:
            raise ConfigError(f"{where}: unknown field {name!r}; expected some of {', '.join(sorted(kinds))}")
        field, held = f"{where}.{name}", getattr(config, name)
        if isinstance(held, BlocksConfig):
            new[name] = with_changes(held, read(dict, value, field), path, field)
            continue
        wanted = read(kinds[name], value, field)
        if wanted != held and name not in IN_NO_WEIGHT:
            whose = f"as {path} has, whose weights the run begins with"
            raise ConfigError(f"{field}: expected {shown(held)}, {whose}; got {shown(wanted)}")
        new[name] = wanted
    return dataclasses.replace(config, **new)


def _one_level(vae: VAEConfig, level: int) -> dict[str, Any]:
    """What a transformer over one level's whole map takes from the VAE; level 1's prefix is the top map."""
    side = vae.level_sides[level]
    own = {"codebook_sizes": (vae.codebook_sizes[level],), "side": side, "max_positions": side**2}
    if level == 0:
        return own
    return {**own, "prefix_vocab_size": vae.codebook_sizes[0], "prefix_length": vae.level_sides[0] ** 2}


def preset_config(preset: Preset) -> HQTVAEConfig:
    """What a preset trains: HQ-VAE alone, or a transformer over the codes of the first stage-1 preset that it fits."""
    model = preset.fields.get("model", {})
    if preset.stage == "stage1":
        return HQTVAEConfig(vae=make_vae_config(model), transformer=None)
    for name in ("imagenet", *preset_names("stage1")):
        vae = make_vae_config(load_preset("stage1", name).fields["model"])
        try:
            return HQTVAEConfig(vae=vae, transformer=make_transformer_config(model, vae))
        except ConfigError as error:
            unfit = error
    raise ConfigError(f"preset {preset.name}: expected the codes of some stage-1 preset; got none that fit ({unfit})")

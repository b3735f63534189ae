"""The released implementation's ``config.yaml`` as our configuration, field by field, defaults included."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any

from hqtvae_fast.config import (
    MAX_LEVELS,
    BlocksConfig,
    ConfigError,
    Decoding,
    HQTVAEConfig,
    Resampler,
    TransformerConfig,
    VAEConfig,
)
from hqtvae_fast.fields import Between, field_kinds, read, shown

# What a released field may be is what ours may be that it becomes.
_VAE, _BLOCKS, _STAGE2 = field_kinds(VAEConfig), field_kinds(BlocksConfig), field_kinds(TransformerConfig)
_COUNT = _STAGE2["num_classes"]
_RESAMPLERS: dict[str, Resampler] = {"pixelshuffle": "pixel_shuffle", "nearest": "average", "conv": "conv"}
_TWO_LEVEL_POLICIES: dict[str, Decoding] = {
    "hq-transformer": "sequential",
    "hq-transformer/top2bot": "sequential",
    "hq-transformer/parallel": "hierarchical",
    "hq-transformer/parallel4": "hierarchical",
    "hq-transformer/bidirectional": "bidirectional",
    "hq-transformer/bidirectional4": "bidirectional",
}
_THREE_LEVEL_POLICIES: dict[str, Decoding] = {"parallel-add": "hierarchical", "top2mid2bot": "sequential"}
_DEFAULT_SIZES = (8192, 8192, 8192)


class _Section:
    """A mapping of the YAML file that knows its own name, for error messages."""

    def __init__(self, data: Any, name: str) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{name}: expected a mapping; got {type(data).__name__}")
        self.data, self.name = data, name

    def get(self, key: str, default: Any, kind: Any) -> Any:
        """A field of the type ``kind``; ``default`` where it is absent or null."""
        value = self.data.get(key)
        return default if value is None else read(kind, value, f"{self.name}.{key}")

    def section(self, key: str) -> _Section:
        value = self.data.get(key)
        return _Section({} if value is None else value, f"{self.name}.{key}")

    def choose(self, key: str, default: str | None, table: dict[str, Any]) -> Any:
        """What the table says of a name."""
        value = self.data.get(key, default)
        if not isinstance(value, str) or value not in table:
            raise ConfigError(f"{self.name}.{key}: expected one of {', '.join(table)}; got {shown(value)}")
        return table[value]

    def require(self, key: str, default: Any, expected: Any) -> None:
        """A field that changes the model in a way no released checkpoint does."""
        value = self.get(key, default, type(expected))
        if value != expected:
            raise ConfigError(f"{self.name}.{key}: only {expected!r} is supported; got {value!r}")


def parse_config(data: Any) -> HQTVAEConfig:
    """A released ``config.yaml``, loaded, as our configuration. Absent fields take the released defaults."""
    root = _Section(data, "config")
    vae = _parse_vae(root.section("stage1"))
    if "stage2" not in root.data:
        return HQTVAEConfig(vae=vae, transformer=None)
    return HQTVAEConfig(vae=vae, transformer=_parse_transformer(root.section("stage2"), vae.level_sides))


def _parse_vae(stage1: _Section) -> VAEConfig:
    net, aux = stage1.section("hparams"), stage1.section("hparams_aux")
    kind = stage1.choose("type", None, {"simrqgan2": "concat", "hqvae": "sum"})
    net.require("double_z", False, False)
    aux.require("shared_codebook", False, False)
    resampler, factor = _parse_resampler(aux)
    return VAEConfig(
        resolution=net.get("resolution", 256, _VAE["resolution"]),
        channels=net.get("ch", 128, _VAE["channels"]),
        channel_multipliers=net.get("ch_mult", (1, 1, 2, 2, 4), _VAE["channel_multipliers"]),
        num_res_blocks=net.get("num_res_blocks", 2, _VAE["num_res_blocks"]),
        attention_resolutions=net.get("attn_resolutions", (16,), _VAE["attention_resolutions"]),
        latent_channels=net.get("z_channels", 256, _VAE["latent_channels"]),
        init_downsample=net.get("use_init_downsample", False, _VAE["init_downsample"]),
        mid_block=net.get("use_mid_block", True, _VAE["mid_block"]),
        attention=net.get("use_attn", True, _VAE["attention"]),
        dropout=net.get("pdrop", 0.0, _VAE["dropout"]),
        embed_dim=stage1.get("embed_dim", 256, _VAE["embed_dim"]),
        codebook_sizes=_parse_codebook_sizes(stage1, aux),
        resampler=resampler,
        factor=factor,
        combine=kind,
    )


def _parse_resampler(aux: _Section) -> tuple[Resampler, int]:
    name = aux.get("upsample", "nearest", str)
    match = re.fullmatch(r"([a-z]+)(\d{0,3})", name)
    if match is None or match.group(1) not in _RESAMPLERS:
        raise ConfigError(f"{aux.name}.upsample: expected one of {', '.join(_RESAMPLERS)}; got {shown(name)}")
    return _RESAMPLERS[match.group(1)], int(match.group(2) or 2)


def _parse_codebook_sizes(stage1: _Section, aux: _Section) -> tuple[int, ...]:
    if stage1.data["type"] == "simrqgan2":
        return (stage1.get("n_embed", 16384, _COUNT),) * 2
    count = aux.get("code_levels", 2, Annotated[int, Between(2, MAX_LEVELS)])
    sizes = stage1.get("n_embed_levels", _DEFAULT_SIZES, _VAE["codebook_sizes"])
    if len(sizes) < count:
        raise ConfigError(f"{stage1.name}.n_embed_levels: expected {count} sizes; got {len(sizes)}")
    return (*sizes[: count - 1], sizes[-1])


def parse_transformer(data: Any, level_sides: tuple[int, ...]) -> TransformerConfig:
    """The ``stage2`` mapping of a released configuration alone; ``level_sides`` are its code maps' sides, top first."""
    return _parse_transformer(_Section(data, "stage2"), level_sides)


def _parse_transformer(stage2: _Section, level_sides: tuple[int, ...]) -> TransformerConfig:
    net = stage2.section("hparams")
    kinds = {"top": _parse_top, "bottom": _parse_bottom, "multilevel-hq": _parse_three_levels}
    parse = stage2.choose("type", None, {**dict.fromkeys(_TWO_LEVEL_POLICIES, _parse_two_levels), **kinds})
    body = _parse_blocks(net, net.get("n_layers", 42, _BLOCKS["num_layers"]))
    common = TransformerConfig(
        codebook_sizes=(stage2.get("vocab_size_img", 16384, _COUNT),) * 2,
        side=level_sides[0],
        dim=net.get("embed_dim", 1536, _STAGE2["dim"]),
        body=body,
        head=_parse_head(stage2, body),
        condition=_parse_condition(stage2),
        num_classes=net.get("n_classes", 1, _STAGE2["num_classes"]),
        prefix_vocab_size=stage2.get("vocab_size_txt", 16384, _STAGE2["prefix_vocab_size"]),
        prefix_length=net.get("ctx_len_txt", 64, _STAGE2["prefix_length"]),
        position=net.get("position_embedding", "1d", _STAGE2["position"]),
        max_positions=net.get("ctx_len_img", 256, _STAGE2["max_positions"]),
        embedding_dropout=net.get("embd_pdrop", 0.0, _STAGE2["embedding_dropout"]),
    )
    return parse(stage2, common, level_sides)


def _parse_two_levels(stage2: _Section, common: TransformerConfig, sides: tuple[int, ...]) -> TransformerConfig:
    stage2.require("ratio_bot2top", 4, 4)
    return _with_embedding(stage2, replace(common, decoding=_TWO_LEVEL_POLICIES[stage2.data["type"]]))


def _parse_three_levels(stage2: _Section, common: TransformerConfig, sides: tuple[int, ...]) -> TransformerConfig:
    decoding = stage2.choose("decoding_type", "tree", _THREE_LEVEL_POLICIES)
    sizes = stage2.get("vocab_sizes_img", _DEFAULT_SIZES, _STAGE2["codebook_sizes"])
    scrambled = decoding == "sequential"
    return _with_embedding(stage2, replace(common, codebook_sizes=sizes, decoding=decoding, scrambled_middle=scrambled))


def _parse_top(stage2: _Section, common: TransformerConfig, sides: tuple[int, ...]) -> TransformerConfig:
    return replace(common, codebook_sizes=common.codebook_sizes[:1], decoding="global", position="1d")


def _parse_bottom(stage2: _Section, common: TransformerConfig, sides: tuple[int, ...]) -> TransformerConfig:
    return replace(
        _parse_top(stage2, common, sides),
        side=sides[1],
        condition="codes",
        prefix_vocab_size=common.codebook_sizes[0],
    )


def _with_embedding(stage2: _Section, config: TransformerConfig) -> TransformerConfig:
    net = stage2.section("hparams")
    net.require("use_random_order", False, False)
    name = net.get("embedding_type", "baseline", str)
    if name == "reduce":
        return replace(config, embedding="reduce")
    match = re.fullmatch(r"transformer(\d{1,4})", name)
    if match is None:
        raise ConfigError(
            f"{net.name}.embedding_type: expected reduce or transformer1, transformer2, ...; got {shown(name)}"
        )
    return replace(config, iet_layers=int(match.group(1)) - 1)  # the released code builds one block less than it says


def _parse_condition(stage2: _Section) -> Any:
    if stage2.get("use_cls_cond", False, bool):
        return "class"
    return "text" if stage2.get("use_txt_cond", False, bool) else "none"


def _parse_blocks(net: _Section, num_layers: int) -> BlocksConfig:
    return BlocksConfig(
        num_layers=num_layers,
        num_heads=net.get("n_heads", 24, _BLOCKS["num_heads"]),
        attention_bias=net.get("attn_bias", True, _BLOCKS["attention_bias"]),
        mlp_bias=net.get("mlp_bias", True, _BLOCKS["mlp_bias"]),
        gelu="sigmoid" if net.get("gelu_use_approx", False, bool) else "exact",
        residual_dropout=net.get("resid_pdrop", 0.0, _BLOCKS["residual_dropout"]),
        attention_dropout=net.get("attn_pdrop", 0.0, _BLOCKS["attention_dropout"]),
    )


def _parse_head(stage2: _Section, body: BlocksConfig) -> BlocksConfig:
    if stage2.data.get("hparams_dec") is None:
        return replace(body, num_layers=4)
    net = stage2.section("hparams_dec")
    net.require("embed_dim", 1536, stage2.section("hparams").get("embed_dim", 1536, _STAGE2["dim"]))
    return _parse_blocks(net, net.get("n_layers", 42, _BLOCKS["num_layers"]))

"""The released implementation's names for our parameters, and the shapes it stores them in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.model.autoencoder import AttnBlock, Downsample, ResBlock, Upsample
from hqtvae_fast.model.hqtransformer import HQTransformer
from hqtvae_fast.model.hqvae import HQVAE

Names = Iterator[tuple[str, tuple[str, ...]]]  # our module or parameter, and what it is called there


@dataclass(frozen=True)
class Source:
    """Where one of our parameters comes from: released keys and their shapes, joined along dimension 0.

    The parameter is the joined rows in its own shape; surplus rows of a table (``pos_emb_depth`` has one more than is
    read) are dropped.
    """

    parts: tuple[tuple[str, tuple[int, ...]], ...]


def sources(prefix: str, module: HQVAE | HQTransformer) -> dict[str, Source]:
    """For each entry of ``module.state_dict()``, the released keys (under ``prefix``) that it is made from."""
    names = _vae_names(module) if isinstance(module, HQVAE) else _transformer_names(module.config)
    owners = dict(names)
    found = {}
    for key, value in module.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        released = owners[key] if key in owners else tuple(f"{name}.{leaf}" for name in owners[owner])
        shapes = _stored_shapes(module, key, tuple(value.shape), len(released))
        found[key] = Source(tuple((prefix + name, shape) for name, shape in zip(released, shapes, strict=True)))
    return found


def _stored_shapes(module: nn.Module, key: str, shape: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    if key == "head.position.weight" and isinstance(module, HQTransformer):
        return [(rows, shape[1]) for rows in _head_position_rows(module.config)]
    if key.endswith(".start"):
        return [(1, 1, *shape)]
    shape = (shape[0] // count, *shape[1:])  # three for query, key and value
    block = module.get_submodule(key.rpartition(".")[0].rpartition(".")[0])
    if isinstance(block, AttnBlock) and key.endswith((".qkv.weight", ".out.weight")):
        shape = (*shape, 1, 1)  # stored as 1x1 convolutions
    return [shape] * count


def _head_position_rows(config: TransformerConfig) -> tuple[int, ...]:
    """Rows of each stored table of the head's positions p_1, p_2, ..."""
    if config.num_levels == 2:
        return (5,)
    return (4, 16) if config.decoding == "hierarchical" else (21,)


def _vae_names(vae: HQVAE) -> Names:
    levels = len(vae.encoder.down)
    for side in ("encoder", "decoder"):
        yield f"{side}.conv_in", (f"{side}.conv_in",)
        yield f"{side}.norm_out.norm", (f"{side}.norm_out",)
        yield f"{side}.conv_out", (f"{side}.conv_out",)
        middle = zip(vae.get_submodule(f"{side}.middle"), ("block_1", "attn_1", "block_2"), strict=False)  # type: ignore[call-overload]
        for index, (layer, name) in enumerate(middle):
            yield from _layer_names(layer, f"{side}.middle.{index}", f"{side}.mid.{name}")
    for level in range(levels):
        yield from _level_names(vae.encoder.down[level], f"encoder.down.{level}", f"encoder.down.{level}")
        yield from _level_names(vae.decoder.up[level], f"decoder.up.{level}", f"decoder.up.{levels - 1 - level}")
    yield "quant_conv", ("quant_conv_b",)
    yield "post_quant_conv", ("post_quant_conv_b",)
    yield from _codebook_names(vae)


def _codebook_names(vae: HQVAE) -> Names:
    count, two = vae.config.num_levels, vae.config.combine == "concat"
    for level in range(count):
        name = ("quantize_t", "quantize_b")[level] if two else f"quantizers.{level}"
        yield f"codebooks.{level}.embedding", (f"{name}.embedding",)
        yield f"codebooks.{level}.cluster_size", (f"{name}.cluster_size",)
        yield f"codebooks.{level}.embedding_sum", (f"{name}.embedding_avg",)
    for step in range(count - 1):
        # The released list of downsamplers runs from the finest level upwards, ours from the top.
        yield f"downsamples.{step}", ("down_t" if two else f"downsamples.{count - 2 - step}",)
        yield f"upsamples.{step}", ("upsample_t" if two else f"upsamples.{step}",)


def _level_names(layers: Any, ours: str, released: str) -> Names:
    kinds = {ResBlock: "block", AttnBlock: "attn", Downsample: "downsample", Upsample: "upsample"}
    seen = dict.fromkeys(kinds, 0)
    for index, layer in enumerate(layers):
        kind = type(layer)
        number = f".{seen[kind]}" if kind in (ResBlock, AttnBlock) else ""
        seen[kind] += 1
        yield from _layer_names(layer, f"{ours}.{index}", f"{released}.{kinds[kind]}{number}")


def _layer_names(layer: nn.Module, ours: str, released: str) -> Names:
    inner: dict[str, tuple[str, ...]] = {"conv": ("conv",)}
    if isinstance(layer, ResBlock):
        inner = {"norm1.norm": ("norm1",), "conv1": ("conv1",), "norm2.norm": ("norm2",), "conv2": ("conv2",)}
        inner["shortcut"] = ("nin_shortcut",)
    elif isinstance(layer, AttnBlock):
        inner = {"norm": ("norm",), "qkv": ("q", "k", "v"), "out": ("proj_out",)}
    for name, parts in inner.items():
        yield f"{ours}.{name}", tuple(f"{released}.{part}" for part in parts)


_BLOCK_NAMES: dict[str, tuple[str, ...]] = {
    "norm1": ("ln1",),
    "norm2": ("ln2",),
    "attention.qkv": ("attn.query", "attn.key", "attn.value"),
    "attention.out": ("attn.proj",),
    "mlp.up": ("mlp.0",),
    "mlp.down": ("mlp.2",),
}


def _transformer_names(config: TransformerConfig) -> Names:
    yield "norm", ("ln_f",)
    yield from _blocks_names("body", "blocks", config.body.num_layers)
    yield from _prefix_names(config)
    if config.decoding == "global":
        yield "embedding.codes.0", ("tok_emb_img",)
        yield "embedding.top_position.table", ("pos_emb_img",)
        yield "head.logits", ("head_img" if config.condition == "codes" else "head",)
        return
    yield from _embedding_names(config)
    yield from _head_names(config)


def _prefix_names(config: TransformerConfig) -> Names:
    yield "prefix.start", ("sos",)
    if config.condition == "class":
        yield "prefix.embedding", ("sos",)
    elif config.condition in ("text", "codes"):
        yield "prefix.embedding", ("tok_emb_txt",)
        yield "prefix.position", ("pos_emb_txt",)
        yield "prefix.norm", ("ln_txt",)
        yield "prefix.head", ("head_txt",)


def _embedding_names(config: TransformerConfig) -> Names:
    one_table = config.position == "1d"
    yield "embedding.top_position.table", ("pos_emb_top" if one_table else "pos_emb_top_h",)
    yield "embedding.top_position.columns", ("pos_emb_top_w",)
    yield "embedding.local_position", ("pos_emb_emb",)
    yield "embedding.top", ("tok_emb_top",)
    yield "embedding.bottom", ("tok_emb_bot",)
    for level, name in _per_level(config, "tok_emb_top", "tok_emb_bot", "tok_emb_levels"):
        yield f"embedding.codes.{level}", (name,)
    yield from _blocks_names("embedding.blocks", "emb_blocks", config.iet_layers)


def _head_names(config: TransformerConfig) -> Names:
    yield "head.start", ("sos_depth",)
    tables = len(_head_position_rows(config))
    two = config.num_levels == 2
    yield "head.position", ("pos_emb_depth",) if two else tuple(f"pos_emb_depths.{i}" for i in range(tables))
    for level, name in _per_level(config, "tok_emb_top_depth", "tok_emb_bot_depth", "tok_emb_depth_levels"):
        yield f"head.codes.{level}", (name,)
    for level, name in _per_level(config, "ln_top", "ln_bot", "ln_levels"):
        yield f"head.norms.{level}", (name,)
    for level, name in _per_level(config, "head_top", "head_bot", "head_levels"):
        yield f"head.logits.{level}", (name,)
    yield from _blocks_names("head.blocks", "depths", config.head.num_layers)


def _per_level(config: TransformerConfig, top: str, bottom: str, many: str) -> list[tuple[int, str]]:
    if config.num_levels == 2:
        return [(0, top), (1, bottom)]
    return [(level, f"{many}.{level}") for level in range(config.num_levels)]


def _blocks_names(ours: str, released: str, count: int) -> Names:
    for index in range(count):
        for name, parts in _BLOCK_NAMES.items():
            yield f"{ours}.layers.{index}.{name}", tuple(f"{released}.{index}.{part}" for part in parts)

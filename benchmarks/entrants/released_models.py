"""The released implementation's modules in the sizes of one of our configurations, with random weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import nn

from hqtvae_fast.config import BlocksConfig, HQTVAEConfig, TransformerConfig, VAEConfig

UPSAMPLE = {"pixel_shuffle": "pixelshuffle", "average": "nearest", "conv": "conv"}


def write_released(modules: dict[str, ModuleType], config: HQTVAEConfig, directory: Path) -> None:
    """A released checkpoint of random weights: ``config.yaml`` and ``ckpt/last.ckpt``. ValueError on a model whose
    script is not known: one without classes."""
    stage2 = config.transformer
    if stage2 is None or stage2.condition != "class":
        raise ValueError("--script: expected a class-conditional model")
    vae, transformer = build_vae(modules, config.vae), build_transformer(modules, stage2)
    state = {f"{prefix}.{key}": value for prefix, part in (("stage1", vae), ("stage2", transformer))
             for key, value in part.state_dict().items()}  # fmt: skip
    (directory / "ckpt").mkdir(parents=True)
    torch.save({"state_dict": state}, directory / "ckpt" / "last.ckpt")
    two = config.vae.combine == "concat"
    described = {
        "stage1": {
            "type": "simrqgan2" if two else "hqvae",
            "embed_dim": config.vae.embed_dim,
            "n_embed": config.vae.codebook_sizes[0],
            "n_embed_levels": list(config.vae.codebook_sizes),
            "ema_update": True,
            "hparams": _net_fields(config.vae),
            "hparams_aux": _aux_fields(config.vae),
        },
        "stage2": {
            "type": "hq-transformer/parallel" if stage2.num_levels == 2 else "multilevel-hq",
            "decoding_type": None if stage2.num_levels == 2 else "parallel-add",
            "use_cls_cond": True,
            "vocab_size_img": stage2.codebook_sizes[0],
            "vocab_sizes_img": list(stage2.codebook_sizes),
            "hparams": _stage2_fields(stage2, stage2.body),
            "hparams_dec": _stage2_fields(stage2, stage2.head),
        },
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")


def _net_fields(config: VAEConfig) -> dict[str, Any]:
    return {
        "double_z": False,
        "z_channels": config.latent_channels,
        "resolution": config.resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.channels,
        "ch_mult": list(config.channel_multipliers),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": list(config.attention_resolutions),
        "pdrop": config.dropout,
        "use_init_downsample": config.init_downsample,
        "use_mid_block": config.mid_block,
        "use_attn": config.attention,
    }


def _aux_fields(config: VAEConfig) -> dict[str, Any]:
    return {
        "upsample": f"{UPSAMPLE[config.resampler]}{config.factor}",
        "shared_codebook": False,
        "bottom_start": None,
        "decoding_type": "concat",
        "restart_unused_codes": None,
        "code_levels": config.num_levels,
    }


def build_vae(modules: dict[str, ModuleType], config: VAEConfig) -> nn.Module:
    nodes = {"hparams": _node(_net_fields(config)), "hparams_aux": _node(_aux_fields(config))}
    common = {"embed_dim": config.embed_dim, "ema_update": True, **nodes}
    if config.combine == "concat":
        return modules["generator"].SimRQGAN2Generator(n_embed=config.codebook_sizes[0], **common)
    return modules["generator"].HQVAEGenerator(n_embed_levels=list(config.codebook_sizes), **common)


def build_transformer(modules: dict[str, ModuleType], config: TransformerConfig) -> nn.Module:
    common = {
        "vocab_size_txt": config.prefix_vocab_size,
        "use_cls_cond": config.condition == "class",
        "use_txt_cond": config.condition == "text",
        "hparams": _node(_stage2_fields(config, config.body)),
        "hparams_dec": _node(_stage2_fields(config, config.head)),
    }
    sizes = list(config.codebook_sizes)
    if config.num_levels == 3:
        return modules["three_levels"].HQTransformer(vocab_sizes=sizes, decoding_type="parallel-add", **common)
    return modules["two_levels"].iHQGPT(
        vocab_size_top=sizes[0], vocab_size_bot=sizes[1], ratio_bot2top=4, model_type="parallel", **common
    )


def _stage2_fields(config: TransformerConfig, blocks: BlocksConfig) -> dict[str, Any]:
    return {
        "embed_dim": config.dim,
        "n_layers": blocks.num_layers,
        "n_heads": blocks.num_heads,
        "ctx_len_img": config.max_positions,
        "ctx_len_txt": config.prefix_length,
        "embd_pdrop": config.embedding_dropout,
        "resid_pdrop": blocks.residual_dropout,
        "attn_pdrop": blocks.attention_dropout,
        "mlp_bias": blocks.mlp_bias,
        "attn_bias": blocks.attention_bias,
        "gelu_use_approx": blocks.gelu == "sigmoid",
        "n_classes": config.num_classes,
        "embedding_type": "reduce" if config.embedding == "reduce" else f"transformer{config.iet_layers + 1}",
        "position_embedding": config.position,
        "use_random_order": False,
        "rate_random_order": 1.0,
    }


def _node(fields: dict[str, Any]) -> Any:
    """Its constructors read attributes of omegaconf nodes."""
    return importlib.import_module("omegaconf").OmegaConf.create(fields)

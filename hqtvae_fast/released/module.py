"""Released modules in memory, described as the configurations that build others like them."""

from __future__ import annotations

from typing import Any

from torch import nn

from hqtvae_fast.config import Resampler, VAEConfig

_TWO_LEVEL_TYPES = {
    "top2bot": "hq-transformer",
    "parallel": "hq-transformer/parallel",
    "bidirectional": "hq-transformer/bidirectional",
}


def describe_module(model: nn.Module, side: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments for :func:`~hqtvae_fast.released.config.parse_transformer`: the ``stage2`` mapping, the maps' sides.

    ``side`` is the top map's, which the module does not know. Raises ValueError on a module of another kind.
    """
    levels = getattr(model, "code_level", 2)
    try:
        described = _describe_three(model) if levels == 3 else _describe_two(model)
    except (AttributeError, IndexError, KeyError) as error:
        kind = type(model).__name__
        raise ValueError(f"expected a released stage-2 module (iHQGPT, HQTransformer); got {kind}") from error
    return described, tuple(side * 2**level for level in range(levels))


def _describe_two(model: Any) -> dict[str, Any]:
    """The released configuration that builds a module like this one."""
    return {
        **_describe_body(model, model.tok_emb_top.embedding_dim),
        "type": _TWO_LEVEL_TYPES[model.model_type],
        "vocab_size_img": model.tok_emb_top.num_embeddings,
        "ratio_bot2top": model.ratio_bot2top,
    }


def _describe_three(model: Any) -> dict[str, Any]:
    return {
        **_describe_body(model, model.tok_emb_levels[0].embedding_dim),
        "type": "multilevel-hq",
        "vocab_sizes_img": [table.num_embeddings for table in model.tok_emb_levels],
        "decoding_type": model.decoding_type,
    }


def _describe_body(model: Any, dim: int) -> dict[str, Any]:
    one_table = model.position_embedding == "1d"
    hparams = {
        **_describe_blocks(model.blocks, dim),
        "ctx_len_img": (model.pos_emb_top.num_embeddings if one_table else model.pos_emb_top_h.num_embeddings**2),
        "ctx_len_txt": model.idx_pred or None,
        "position_embedding": model.position_embedding,
        "n_classes": model.sos.num_embeddings if model.use_cls_cond else None,
        "use_random_order": getattr(model, "use_random_order", False),
        "embedding_type": model.spatial_embedding,
    }
    if model.spatial_embedding == "transformer":
        hparams["embedding_type"] = f"transformer{len(model.emb_blocks) + 1}"
    return {
        "use_cls_cond": model.use_cls_cond,
        "use_txt_cond": model.use_txt_cond,
        "vocab_size_txt": model.tok_emb_txt.num_embeddings if model.use_txt_cond else None,
        "hparams": hparams,
        "hparams_dec": _describe_blocks(model.depths, dim),
    }


def _describe_blocks(blocks: Any, dim: int) -> dict[str, Any]:
    attention, mlp = blocks[0].attn, blocks[0].mlp
    return {
        "embed_dim": dim,
        "n_layers": len(blocks),
        "n_heads": attention.n_heads,
        "attn_bias": attention.key.bias is not None,
        "mlp_bias": mlp[0].bias is not None,
        "gelu_use_approx": mlp[1].use_approx,
    }


# ------------------------------------------------------------------------------------------------------------- stage 1


def describe_stage1(model: nn.Module) -> VAEConfig:
    """Of a released stage-1 module (SimRQGAN2Generator, HQVAEGenerator); ValueError on a module of another kind."""
    try:
        return _describe_stage1(model)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        kind = type(model).__name__
        raise ValueError(
            f"expected a released stage-1 module (SimRQGAN2Generator, HQVAEGenerator); got {kind}"
        ) from error


def _describe_stage1(model: Any) -> VAEConfig:
    encoder, two = model.encoder, hasattr(model, "quantize_t")
    books = [model.quantize_t, model.quantize_b] if two else list(model.quantizers)
    resampler, factor = _describe_resampler(model.down_t if two else model.downsamples[0])
    channels, _, kernel, _ = encoder.conv_in.weight.shape
    widths = [level.block[0].conv2.weight.shape[0] for level in encoder.down]
    embed_dim, latent_channels, _, _ = model.quant_conv_b.weight.shape
    attention = _attention_sides(model, encoder.resolution, len(widths) - 1 + int(kernel == 4))
    middle = getattr(encoder, "mid", None)
    return VAEConfig(
        resolution=encoder.resolution,
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        num_res_blocks=len(encoder.down[0].block),
        attention_resolutions=attention,
        latent_channels=latent_channels,
        init_downsample=kernel == 4,
        mid_block=middle is not None,
        attention=bool(attention) or (middle is not None and hasattr(middle.attn_1, "q")),
        embed_dim=embed_dim,
        codebook_sizes=tuple(len(book.embedding) for book in books),
        resampler=resampler,
        factor=factor,
        combine="concat" if two else "sum",
    )


def _describe_resampler(down: Any) -> tuple[Resampler, int]:
    if isinstance(down, nn.PixelUnshuffle):
        return "pixel_shuffle", down.downscale_factor
    if isinstance(down, nn.AvgPool2d):
        size = down.kernel_size
        return "average", size if isinstance(size, int) else size[0]
    return "conv", down.weight.shape[-1]


def _attention_sides(model: Any, resolution: int, halvings: int) -> tuple[int, ...]:
    """The sides at which either half has attention; each counts in its own way, from the image and from the latents."""
    levels = len(model.encoder.down)
    down = [resolution >> level for level in range(levels)]
    up = [(resolution >> halvings) << (levels - 1 - level) for level in range(levels)]
    pairs = [*zip(down, model.encoder.down, strict=True), *zip(up, model.decoder.up, strict=True)]
    return tuple(sorted({side for side, level in pairs if len(getattr(level, "attn", ())) > 0}))

"""A released stage-2 module in memory, described as the configuration that builds one like it."""

from __future__ import annotations

from typing import Any

from torch import nn

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

"""A step's head as one operation, where it was asked for: HQTVAE_BACKEND=prediction_head=cuda."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from hqtvae_fast.backend import BackendError, asked_for
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.head import PyramidHead
from hqtvae_fast.model.layers import Block
from hqtvae_fast.model.linear import Linear
from hqtvae_fast.model.prepared import ALTERED
from hqtvae_fast.ops.kernels.prediction_head import BlockWeights, HeadWeights, LevelWeights, PredictionHead
from hqtvae_fast.ops.kernels.prediction_head.table import MOST_IMAGES

OP, BACKEND = "prediction_head", "cuda"


@dataclass(frozen=True)
class WholeHead:
    """Both passes and draws of a step. Reads the model's parameters in place."""

    head: PredictionHead

    @classmethod
    def if_asked_for(cls, model: HQTransformer, batch: int, dependent: bool = False) -> WholeHead | None:
        """None unless the environment asks for it; a BackendError where it does and the model or batch do not fit.
        ``dependent``: fetch weights while the body's last kernel still runs, see :class:`PredictionHead`."""
        if asked_for(OP) != BACKEND:
            return None
        reason, altered = why_not(model.config, batch), model.altered()
        if altered is not None:
            reason = f"{altered} {ALTERED}"
        if reason is not None:
            raise BackendError(f"{OP}: backend {BACKEND!r} was asked for and cannot run: {reason}")
        config = model.config.head
        weights = weights_of(cast(PyramidHead, model.head))
        return cls(PredictionHead.of(weights, config.num_heads, config.gelu, dependent=dependent))

    def __call__(
        self,
        h_BD: Tensor,
        local_BN: Tensor,
        *,
        seeds: Tensor,
        step: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        invalid: Tensor,
        keep_top: bool,
    ) -> None:
        filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        options = {"invalid": invalid, "draw_top": not keep_top, "backend": BACKEND}
        self.head(h_BD.contiguous(), local_BN, seeds=seeds, step=step, **filters, **options)  # type: ignore[arg-type]


def why_not(config: TransformerConfig, batch: int) -> str | None:
    """None where one operation is this model's head, else the reason."""
    if config.decoding != "hierarchical" or config.num_levels != 2:
        return f"expected hierarchical decoding over two levels; got {config.decoding} over {config.num_levels}"
    if config.head.num_layers == 0:
        return "expected blocks in the head; got none"
    if batch > MOST_IMAGES:
        return f"expected at most {MOST_IMAGES} images; got {batch}"
    return None


@torch.no_grad()
def weights_of(head: PyramidHead) -> HeadWeights:
    """The head's own tensors, the narrow ones where a matrix has been rounded to them; only the rows of the positions
    may be a copy."""

    def norm(layer: nn.Module) -> tuple[Tensor, Tensor]:
        return cast(Tensor, layer.weight), cast(Tensor, layer.bias)

    def block(layer: Block) -> BlockWeights:
        attention, mlp = layer.attention, layer.mlp
        projections = (attention.qkv, attention.out, mlp.up, mlp.down)
        qkv, out, up, down = ((*linear.streamed, linear.bias) for linear in projections)
        return BlockWeights(*norm(layer.norm1), *qkv, *out, *norm(layer.norm2), *up, *down)

    pairs = zip(head.norms, head.logits, strict=True)
    levels = tuple(LevelWeights(*norm(own), *cast(Linear, logits).streamed) for own, logits in pairs)
    blocks = tuple(block(cast(Block, layer)) for layer in head.blocks.layers)
    return HeadWeights(head.start, head.position.weight[:4], cast(Tensor, head.codes[0].weight), blocks, levels)

"""Drawing codes as one writes it down in plain torch: the same weights, keys and values in buffers of a fixed size, and
the position on the device, so that ``torch.compile`` sees one graph for all steps.

No operation of this package is called. Held to :func:`hqtvae_fast.engine.draw_codes` by a test.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.engine import SamplingParams
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.embedding import LocalEmbedding
from hqtvae_fast.model.head import PyramidHead
from hqtvae_fast.model.layers import Block, Blocks
from hqtvae_fast.ops.kernels.sample_logits.reference import filter_logits


class NotWrittenDown(ValueError):
    """The model has parts that this module does not know."""


def refuse_unknown(model: HQTransformer) -> None:
    """NotWrittenDown for what is neither drawn from nor trained here."""
    embedding = model.embedding
    known = isinstance(embedding, LocalEmbedding) and len(embedding.blocks.layers) == 0
    if not known or not isinstance(model.head, PyramidHead) or model.config.scrambled_middle:
        raise NotWrittenDown("plain torch: expected a pyramid's head and codes embedded without attention (IET)")


class PlainTransformer:
    """Draws ``batch`` images at once. ``dtype``: of the cached keys and values, in which autocast computes them."""

    def __init__(self, model: HQTransformer, batch: int, params: SamplingParams, dtype: torch.dtype) -> None:
        refuse_unknown(model)
        embedding, head, config = model.embedding, model.head, model.config
        self.model, self.batch, self.params, self.config = model, batch, params, config
        device = model.norm.weight.device
        self._capacity = config.prefix_positions + config.num_steps - 1
        self._steps = torch.arange(max(self._capacity, config.num_local), device=device)
        self._places = embedding.top_position(range(config.num_steps)) / config.num_local
        body = (len(model.body.layers), batch, config.body.num_heads, self._capacity)
        pyramid = (len(head.blocks.layers), batch, config.head.num_heads, config.num_local)
        self.caches = [torch.zeros(2, *size, config.dim // size[2], dtype=dtype, device=device)
                       for size in (body, pyramid)]  # fmt: skip
        self.first_step, self.later_step = self._first_step, self._later_step
        self._begin_step: Callable[[], None] = lambda: None

    def compile(self, mode: str) -> PlainTransformer:
        """Both kinds of steps by ``torch.compile``, each one graph."""
        for cache in self.caches:
            torch._dynamo.mark_static_address(cache)  # else a CUDA graph would copy it at each replay
        self._begin_step = torch.compiler.cudagraph_mark_step_begin  # importing it takes seconds
        self.first_step = torch.compile(self._first_step, mode=mode, fullgraph=True, dynamic=False)
        self.later_step = torch.compile(self._later_step, mode=mode, fullgraph=True, dynamic=False)
        return self

    def draw(self, condition: Tensor | None) -> Tensor:
        """Local pyramids of codes, int64 [B, T, n]."""
        prefix, steps = self.config.prefix_positions, self.config.num_steps
        local_BTN = torch.zeros(self.batch, steps, self.config.num_local, dtype=torch.int64, device=self._steps.device)
        for step in range(steps):
            self._begin_step()
            if step == 0:
                drawn = self.first_step(condition)
            else:
                drawn = self.later_step(local_BTN[:, step - 1], self._places[step - 1], self._steps[prefix + step - 1])
            local_BTN[:, step] = drawn
        return local_BTN

    def _first_step(self, condition: Tensor | None) -> Tensor:
        x_BPD = self.model.prefix(condition, self.batch)
        return self._step(x_BPD, self._steps[: x_BPD.shape[1]])

    def _later_step(self, codes_BN: Tensor, place_D: Tensor, position: Tensor) -> Tensor:
        embedding = self.model.embedding
        levels = zip(embedding.codes, codes_BN.split(list(embedding.widths), dim=1), strict=True)
        m_BND = torch.cat([F.embedding(codes, table.weight) for table, codes in levels], dim=1)
        m_BND = m_BND + embedding.local_position.weight
        return self._step(m_BND.mean(dim=1, keepdim=True) + place_D, position[None])

    def _step(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """The body at these positions, then the head, group by group: codes [B, n]."""
        model, head = self.model, self.model.head
        seen = self._steps[: self._capacity] <= positions[:, None]
        h_BD = plain_norm(model.norm, _blocks(model.body, x_BTD, self.caches[0], positions, seen)[:, -1])
        codes = torch.zeros(self.batch, self.config.num_local, dtype=torch.int64, device=x_BTD.device)
        for group in self.config.groups:
            places, known = self._steps[group.start : group.stop], self.caches[1][..., : group.stop, :]
            x_BGD = _blocks(head.blocks, head.inputs(h_BD, codes, group), known, places, None)
            for q in group:
                level = self.config.local_levels[q]
                logits = F.linear(plain_norm(head.norms[level], x_BGD[:, q - group.start]), head.logits[level].weight)
                codes = codes.index_copy(1, self._steps[q : q + 1], self._draw(logits, level)[:, None])
        return codes

    def _draw(self, logits_BK: Tensor, level: int) -> Tensor:
        """An exponential race: of independent exponentials over the probabilities, the first to end wins."""
        params = self.params
        kept = filter_logits(logits_BK, params.temperature[level], params.top_k[level], params.top_p[level])
        probabilities = kept.softmax(dim=1)
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=1)


def _blocks(blocks: Blocks, x_BTD: Tensor, cache: Tensor, positions: Tensor, seen: Tensor | None) -> Tensor:
    """The stack at ``positions``; keys and values [2, layers, B, H, C, E] get theirs there. ``seen`` [T, C]: who may be
    looked at, None: all."""
    for index, block in enumerate(blocks.layers):
        x_BTD = _block(block, x_BTD, cache[0, index], cache[1, index], positions, seen)
    return x_BTD


def _block(block: Block, x_BTD: Tensor, keys: Tensor, values: Tensor, positions: Tensor, seen: Tensor | None) -> Tensor:
    q, k, v = _qkv(block, x_BTD)
    keys.index_copy_(2, positions, k)
    values.index_copy_(2, positions, v)
    y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
    x_BTD = x_BTD + _joined(block, y)
    return x_BTD + _mlp(block, x_BTD)


def plain_block(block: Block, x_BTD: Tensor, mask: Tensor | None) -> Tensor:
    """A block over a whole sequence, in training; without a mask, each position sees those before it."""
    dropout = block.attention.dropout
    y = F.scaled_dot_product_attention(*_qkv(block, x_BTD), attn_mask=mask, dropout_p=dropout, is_causal=mask is None)
    x_BTD = x_BTD + block.dropout(_joined(block, y))
    return x_BTD + block.dropout(_mlp(block, x_BTD))


def _qkv(block: Block, x_BTD: Tensor) -> tuple[Tensor, ...]:
    B, T, _ = x_BTD.shape
    qkv = plain_linear(block.attention.qkv, plain_norm(block.norm1, x_BTD))
    return qkv.view(B, T, 3, block.attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _joined(block: Block, y_BHTE: Tensor) -> Tensor:
    return plain_linear(block.attention.out, y_BHTE.transpose(1, 2).flatten(2))


def _mlp(block: Block, x_BTD: Tensor) -> Tensor:
    mlp = block.mlp
    hidden = plain_linear(mlp.up, plain_norm(block.norm2, x_BTD))
    hidden = F.gelu(hidden) if mlp.gelu == "exact" else hidden * torch.sigmoid(1.702 * hidden)
    return plain_linear(mlp.down, hidden)


def plain_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def plain_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

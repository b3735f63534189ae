"""A step on the fused operations of :mod:`hqtvae_fast.ops`: at most eight kernels a transformer block.

A block is four products with what lies between them fused: the projection's bias, the cache and the softmax in one
attention kernel; residual, bias and the LayerNorm that the next product reads in one; bias and GELU in one, or, for up
to 16 rows on a GPU, in the product itself, which is then our own kernel and not the library's. So a stack
is entered with a LayerNorm and each block hands the next one its input already normalised; the last one takes the
LayerNorm that follows the stack. Positions and steps are read from the device, where a captured graph finds them.

The numbers are those of :class:`hqtvae_fast.engine.step.ReferenceStep` but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.engine.embed import BodyEmbedding, HeadEmbedding
from hqtvae_fast.engine.step import LevelFeatures, LevelLogits, StepOptions, make_caches, split_group
from hqtvae_fast.engine.tables import CLASSES, StepTables, num_starts
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.head import CodeHead, PyramidHead
from hqtvae_fast.model.layers import MLP, Block, Blocks
from hqtvae_fast.model.linear import Linear
from hqtvae_fast.ops import (
    add_layer_norm,
    bias_gelu,
    decode_attention,
    local_attention,
    prefill_attention,
    skinny_linear,
)
from hqtvae_fast.ops.kernels.skinny_linear.triton import MOST_ROWS, Workspace

Attend = Callable[[Tensor, "Tensor | None", int], Tensor]
"""(q/k/v [B, T, 3, H, E] without their bias, the bias, the layer's number) -> [B, T, D]. Without queries: k/v."""


class FusedStep:
    """See :class:`hqtvae_fast.engine.step.Step`. The model's parameters are read in place, none is copied but the
    positions' few rows, at each first step. The draw takes over the head's last product only where its weight is not
    narrow."""

    def __init__(self, model: HQTransformer, batch: int, options: StepOptions | None = None) -> None:
        config, device = model.config, model.norm.weight.device
        self.model, self.batch, self.options = model, batch, options or StepOptions()
        self.tables = self.options.tables
        self.caches = make_caches(model, batch)
        self.numbers = torch.arange(config.prefix_positions + config.num_steps, dtype=torch.int64, device=device)
        self.embedding = BodyEmbedding(model)
        self._few_rows: dict[str, Any] = {"workspace": Workspace.on(device), "prefetch": self.options.dependent_launch}
        self.head_embedding = HeadEmbedding(model.head) if isinstance(model.head, PyramidHead) else None

    def body(self, step: int, condition: Tensor | None, local_BTN: Tensor) -> Tensor:
        model, (cache, _) = self.model, self.caches
        cached = model.config.prefix_positions - 1 + step
        if step == 0:
            self.embedding.place()
        if step == 0 and self.tables is not None and self.tables.start is not None:
            return self.tables.start.read(condition, cache, self.batch)
        if step == 0:
            x_BSD = model.prefix(condition, self.batch)
        else:
            x_BSD = self._embed(local_BTN[:, step - 1], self.numbers[step - 1])

        def attend(qkv: Tensor, bias: Tensor | None, layer: int) -> Tensor:
            if qkv.shape[1] > 1:  # a whole prefix
                return prefill_attention(qkv, cache.keys[layer], cache.values[layer], bias=bias)
            start = self.numbers[cached]
            return decode_attention(qkv, cache.keys[layer], cache.values[layer], start, bias=bias)

        return self._run(model.body, x_BSD, None, attend, model.norm)[1][:, -1]

    def head(self, h_BD: Tensor, local_BN: Tensor, group: range) -> Sequence[LevelLogits | LevelFeatures]:
        head, parts = self.model.head, split_group(self.model, group)
        if isinstance(head, CodeHead):
            return [self._predict(0, 0, h_BD[:, None], head.logits)]
        norms = [cast(nn.LayerNorm, head.norms[part.level]) for part in parts]
        x_BGD, normal_BGD = self._run_head(h_BD, local_BN, group, norms[0])
        found = []
        for part, norm in zip(parts, norms, strict=True):
            own = slice(part.positions.start - group.start, part.positions.stop - group.start)
            if norm is not norms[0]:  # a group of several levels, each with a LayerNorm of its own
                normal_BGD[:, own] = _normalise(x_BGD[:, own], norm)
            found.append(self._predict(part.level, part.positions.start, normal_BGD[:, own], head.logits[part.level]))
        return found

    def _predict(self, level: int, first: int, x_BGD: Tensor, layer: nn.Module) -> LevelLogits | LevelFeatures:
        layer = cast(Linear, layer)
        if self.options.fused_draw and layer.streamed[1] is None:
            return LevelFeatures(level, first, x_BGD, layer.weight)
        return LevelLogits(level, first, self._multiply(x_BGD, layer))

    def skip(self, h_BD: Tensor) -> None:
        head = self.model.head
        if isinstance(head, PyramidHead):
            self._run_head(h_BD, None, range(1), cast(nn.LayerNorm, head.norms[0]))

    def _run_head(
        self, h_BD: Tensor, local_BN: Tensor | None, group: range, norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor]:
        head, (_, cache) = cast(PyramidHead, self.model.head), self.caches
        start_vector: Tensor | None = None
        first_qkv: Tensor | None = None
        if group == range(1):
            x_BGD, start_vector = h_BD[:, None], head.start
        else:
            assert self.head_embedding is not None
            assert local_BN is not None
            x_BGD = self.head_embedding(h_BD, local_BN, group)
            first_qkv = None if self.tables is None else self.tables.first_qkv(local_BN, group)

        def attend(qkv: Tensor, bias: Tensor | None, layer: int) -> Tensor:
            return local_attention(qkv, bias, cache.keys[layer], cache.values[layer], group.start)

        queries = not (self.options.skip_query and group == range(1))  # position 0 sees itself alone
        return self._run(head.blocks, x_BGD, start_vector, attend, norm, first_qkv, queries=queries)

    def _embed(self, local_BN: Tensor, step: Tensor) -> Tensor:
        """The body's token [B, 1, D] of the codes drawn at ``step``."""
        x_BGD = self.embedding(local_BN, step)
        blocks = self.embedding.blocks
        if blocks is None:
            return x_BGD

        def attend(qkv: Tensor, bias: Tensor | None, layer: int) -> Tensor:
            return local_attention(qkv, bias)

        return self._run(blocks, x_BGD, None, attend, None)[0].mean(dim=1, keepdim=True)

    def _up(self, x: Tensor, mlp: MLP) -> Tensor:
        """The wide inside of an MLP, [B, T, 4 D]."""
        if self._few(x):
            weight, scale = mlp.up.streamed
            return skinny_linear(x, weight, mlp.up.bias, scale=scale, gelu=mlp.gelu, **self._few_rows)
        return bias_gelu(F.linear(x, mlp.up.weight), mlp.up.bias, mlp.gelu)

    def _multiply(self, x: Tensor, layer: nn.Module, first: int = 0) -> Tensor:
        """The product alone, of outputs from ``first`` on; whatever reads it adds the bias."""
        layer = cast(Linear, layer)
        if not self._few(x):
            return F.linear(x, layer.weight[first:])
        weight, scale = layer.streamed
        return skinny_linear(x, weight[first:], scale=None if scale is None else scale[first:], **self._few_rows)

    def _few(self, x: Tensor) -> bool:
        """Whether a product with these rows is the time to read its weight, which our kernel does alone."""
        return x.is_cuda and x.shape[0] * x.shape[1] <= MOST_ROWS

    def _run(
        self,
        blocks: Blocks,
        x_BTD: Tensor,
        added: Tensor | None,
        attend: Attend,
        last: nn.LayerNorm | None,
        qkv_BTD: Tensor | None = None,
        queries: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """A stack over x + ``added`` (a vector [D]), and the LayerNorm that follows it; None: none that counts.
        ``qkv_BTD``: the first block's product, where it is known. ``queries``: False leaves theirs out of all."""
        layers = [cast(Block, layer) for layer in blocks.layers]
        first = 0 if queries else x_BTD.shape[-1]  # of the projection's outputs, queries are the first D
        if not layers:
            assert last is not None
            return _add(x_BTD, None, added, last)
        if qkv_BTD is None:
            x_BTD, normal_BTD = _add(x_BTD, None, added, layers[0].norm1)
            qkv_BTD = self._multiply(normal_BTD, layers[0].attention.qkv, first)
        for index, (block, after) in enumerate(zip(layers, [*layers[1:], None], strict=True)):
            attention, mlp = block.attention, block.mlp
            qkv_BTPHE = qkv_BTD.unflatten(-1, (3 if queries else 2, attention.num_heads, -1))
            bias = None if attention.qkv.bias is None else attention.qkv.bias[first:]
            y_BTD = self._multiply(attend(qkv_BTPHE, bias, index), attention.out)
            x_BTD, normal_BTD = _add(x_BTD, y_BTD, attention.out.bias, block.norm2)
            y_BTD = self._multiply(self._up(normal_BTD, mlp), mlp.down)
            following = after.norm1 if after is not None else last or block.norm1
            x_BTD, normal_BTD = _add(x_BTD, y_BTD, mlp.down.bias, following)
            if after is not None:
                qkv_BTD = self._multiply(normal_BTD, after.attention.qkv, first)
        return x_BTD, normal_BTD


def make_tables(model: HQTransformer) -> StepTables:
    """Tables of whatever a step of this model can read from them, as large as
    :func:`hqtvae_fast.engine.tables.table_bytes` says."""
    count = num_starts(model.config)
    return StepTables.make(model, FusedStep(model, min(CLASSES, count)) if count > 0 else None)


def _add(x: Tensor, added: Tensor | None, bias: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return add_layer_norm(x, added, bias, norm.weight, norm.bias, norm.eps)


def _normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return _add(x, None, None, norm)[1]

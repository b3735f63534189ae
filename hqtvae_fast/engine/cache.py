"""What a drawing keeps so as not to compute it twice: keys and values of positions gone by, and tables.

Two parts of a step depend on one small number each, so they can be computed once for all of them: memory in exchange
for products. Where the positions of a head's group read the top code alone, their q/k/v in the first layer depend on
(code, position); the body's first step depends on the class.

Shapes: K top codes, C classes (1: an unconditional model), G positions of a group, L layers of the body, H heads of E.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.engine.options import KV
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.embedding import HeadEmbedding
from hqtvae_fast.model.head import PyramidHead, tabled_groups
from hqtvae_fast.model.layers import Block, Blocks
from hqtvae_fast.modes import no_autocast
from hqtvae_fast.ops import add_layer_norm

CODES = 1024
"""Computed at a time."""
CLASSES = 64
"""Likewise; each has a whole cache meanwhile, 4.7 MB for preset S in bf16."""


class KVCache:
    """Keys and values of a stack of attention layers for up to ``capacity`` positions: preallocated, written in place,
    never concatenated.

    Layout [layers, B, H, capacity, E]: a layer's share is one contiguous block, and a head's positions are
    neighbours, which is the order in which a query reads them.

    ``kv``: None keeps them in ``dtype``; "int8" rounded to 8 bits, with ``scales`` fp32 [layers, 2, B, H, capacity] of
    keys and of values (:mod:`hqtvae_fast.ops.kernels.decode_attention.int8`): for heads of 64, 0.53 of bf16's bytes.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        kv: KV | None = None,
    ) -> None:
        shape = (layers, batch, heads, capacity, width)
        kept = dtype if kv is None else torch.int8
        self.keys = torch.zeros(shape, dtype=kept, device=device)
        self.values = torch.zeros(shape, dtype=kept, device=device)
        self.scales: Tensor | None = None
        if kv is not None:
            self.scales = torch.zeros(layers, 2, batch, heads, capacity, dtype=torch.float32, device=device)
        self.length = 0

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def layer(self, index: int) -> LayerKV:
        return LayerKV(self, index)  # not kept: the two would hold each other, and the memory with them

    def advance(self, positions: int) -> None:
        """Called once a pass, after all layers have appended."""
        self.length += positions

    def reset(self) -> None:
        """Forget all positions; the memory is written over by the next pass."""
        self.length = 0


class LayerKV:
    """One layer's share of a :class:`KVCache`."""

    def __init__(self, cache: KVCache, index: int) -> None:
        self.cache, self.keys, self.values = cache, cache.keys[index], cache.values[index]
        self.scales = None if cache.scales is None else cache.scales[index]

    @property
    def length(self) -> int:
        """Positions held; the same in all layers, and moved on by :meth:`KVCache.advance` alone."""
        return self.cache.length

    def append(self, k_BHTE: Tensor, v_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Write T positions after those held; return keys and values of all of them, [B, H, length + T, E]."""
        end = self.length + k_BHTE.shape[2]
        self.keys[:, :, self.length : end].copy_(k_BHTE)
        self.values[:, :, self.length : end].copy_(v_BHTE)
        return self.keys[:, :, :end], self.values[:, :, :end]


def make_caches(model: HQTransformer, batch: int, kv: KV | None = None) -> tuple[KVCache, KVCache]:
    """The body's cache for all its positions, and the head's for those of one step. ``kv``: of the body's; the head's,
    of five positions, is in the model's dtype."""
    config, weight = model.config, model.norm.weight

    def make(blocks: Blocks | None, heads: int, capacity: int, kv: KV | None = None) -> KVCache:
        return KVCache(
            layers=0 if blocks is None else len(blocks.layers),
            batch=batch,
            heads=heads,
            capacity=capacity,
            width=config.dim // heads,
            dtype=weight.dtype,
            device=weight.device,
            kv=kv,
        )

    head_blocks = getattr(model.head, "blocks", None)
    body = make(model.body, config.body.num_heads, config.prefix_positions + config.num_steps - 1, kv)
    return body, make(head_blocks, config.head.num_heads, config.num_local)


# --------------------------------------------------------------------------------------------------------------- tables


class FirstStep(Protocol):
    """As much of a step as fills the tables with it."""

    caches: tuple[KVCache, KVCache]

    def body(self, step: int, condition: Tensor | None, local_BTN: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class StartTable:
    """The body's first step by class: h [C, D], and what its layers cached, [L, C, H, E] each; in 8 bits, with scales
    [L, C, 2, H]."""

    h: Tensor
    keys: Tensor
    values: Tensor
    scales: Tensor | None = None

    def read(self, condition: Tensor | None, cache: KVCache, batch: int) -> Tensor:
        """h [B, D]; position 0 of the cache is filled. ValueError where it keeps numbers in another way."""
        if cache.keys.dtype is not self.keys.dtype:
            raise ValueError(f"tables: expected keys and values in {cache.keys.dtype}; got {self.keys.dtype}")
        labels_B = self.h.new_zeros(batch, dtype=torch.int64) if condition is None else condition
        cache.keys[:, :, :, 0].copy_(self.keys.index_select(1, labels_B))
        cache.values[:, :, :, 0].copy_(self.values.index_select(1, labels_B))
        if self.scales is not None and cache.scales is not None:
            cache.scales[..., 0].copy_(self.scales.index_select(1, labels_B).transpose(1, 2))
        return F.embedding(labels_B, self.h)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.h, self.keys, self.values, *(() if self.scales is None else (self.scales,))]


@dataclass(frozen=True)
class StepTables:
    """Tables of one model for :class:`hqtvae_fast.engine.fused_step.FusedStep`, in the dtype of its weights.

    Preset S in bf16 has 302.0 MB of q/k/v (8192 codes x 4 positions x 3 D) and 76.8 MB of first steps (1000 classes x
    (1 + 2 x 12 layers) x D); in exchange a step reads 14.2 MB less of weights, 1.2% of all, and one step of 64 leaves
    out the body. :func:`table_bytes` gives the sum for any configuration. The numbers are those that the step itself
    computes but for rounding.
    """

    qkv: dict[range, Tensor]
    """Of the head's first layer without its bias, [K, G * 3 D], by group."""

    start: StartTable | None
    """None where the prefix is longer than one position (text)."""

    @classmethod
    @torch.no_grad()
    @no_autocast()
    def make(cls, model: HQTransformer, first: FirstStep | None = None) -> StepTables:
        """``first``: a step for ``min(CLASSES, C)`` images, which computes the starts; None: no table of starts."""
        head, qkv = model.head, {}
        if isinstance(head, PyramidHead):
            qkv = {group: _head_qkv(head, group) for group in tabled_groups(model.config)}
        return cls(qkv, None if first is None else _starts(model, first))

    def first_qkv(self, local_BN: Tensor, group: range) -> Tensor | None:
        """[B, G, 3 D], or None where the group has no table."""
        table = self.qkv.get(group)
        return None if table is None else F.embedding(local_BN[:, 0], table).view(len(local_BN), len(group), -1)

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.qkv.values(), *([] if self.start is None else self.start.tensors)]

    @property
    def bytes(self) -> int:
        return sum(table.nbytes for table in self.tensors)


def num_starts(config: TransformerConfig) -> int:
    """C, how many first steps there are; 0 where the prefix is more than one position."""
    return {"class": config.num_classes + config.null_condition, "none": 1}.get(config.condition, 0)


def table_bytes(config: TransformerConfig, dtype: torch.dtype = torch.bfloat16, kv: KV | None = None) -> int:
    """Memory that the tables of a model take."""
    D, codes = config.dim, config.codebook_sizes[0]
    head = sum(codes * len(group) * 3 * D for group in tabled_groups(config))
    cached = dtype.itemsize * D if kv is None else D + 4 * config.body.num_heads
    return dtype.itemsize * head + num_starts(config) * (dtype.itemsize * D + 2 * config.body.num_layers * cached)


def _head_qkv(head: PyramidHead, group: range) -> Tensor:
    embedding, block = HeadEmbedding(head), cast(Block, head.blocks.layers[0])
    codes_K, parts = torch.arange(head.config.codebook_sizes[0], dtype=torch.int64, device=head.start.device), []
    for codes in codes_K.split(CODES):
        local_MN = codes[:, None].expand(-1, head.config.num_local).contiguous()
        x_MGD = embedding(head.start.expand(len(codes), -1), local_MN, group)
        normal = add_layer_norm(x_MGD, None, None, block.norm1.weight, block.norm1.bias, block.norm1.eps)[1]
        parts.append(F.linear(normal, block.attention.qkv.weight).flatten(1))
    return torch.cat(parts)


def _starts(model: HQTransformer, first: FirstStep) -> StartTable:
    config, device = model.config, model.norm.weight.device
    count, cache = num_starts(config), first.caches[0]
    if count == 0:
        raise ValueError(f"tables of first steps: expected a class or no condition; got {config.condition!r}")
    rows = cache.keys.shape[1]
    nothing_drawn = torch.zeros(rows, config.num_steps, config.num_local, dtype=torch.int64, device=device)
    parts = []
    for begin in range(0, count, rows):
        labels = torch.arange(begin, begin + rows, dtype=torch.int64, device=device).clamp_max(count - 1)
        h_BD = first.body(0, labels if config.condition == "class" else None, nothing_drawn)
        cached = [cache.keys[:, :, :, 0], cache.values[:, :, :, 0]]
        cached += [] if cache.scales is None else [cache.scales[..., 0].transpose(1, 2)]
        parts.append([part.clone() for part in (h_BD, *cached)])
    h, *columns = zip(*parts, strict=True)
    return StartTable(torch.cat(h)[:count], *(torch.cat(own, dim=1)[:, :count] for own in columns))

"""Prediction heads: from the body's output at a top position to logits of its codes (eq. 11-14)."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.model.layers import LAYER_NORM_EPS, Block, Blocks, StackCache
from hqtvae_fast.model.linear import Linear
from hqtvae_fast.model.pyramid import parents
from hqtvae_fast.ops.kernels.prediction_head import BlockWeights, HeadWeights, LevelWeights


class CodeHead(nn.Module):
    """Global conditioning: one code a position, straight from h."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.logits = Linear(config.dim, config.codebook_sizes[0], bias=False)

    def forward(self, h_MD: Tensor, local_MN: Tensor) -> list[Tensor]:
        """Teacher forcing: logits of each level, [M, 1, K] here."""
        return [self.logits(h_MD)[:, None]]

    def draw(self, h_MD: Tensor, local_MN: Tensor, group: range, cache: StackCache) -> list[Tensor]:
        """Logits [M, 1, K] of the group's one level."""
        return [self.logits(h_MD)[:, None]]

    def skip(self, h_MD: Tensor, cache: StackCache) -> None:
        """Nothing later reads what drawing would have cached."""


class PyramidHead(nn.Module):
    """PHT: blocks over the n local positions, whose groups are drawn one after the other.

    Input of position 0 is h + p_0. Input of a later position q, by decoding policy:
    hierarchical: E(parent code) + p_q, at the third level + E(top code); sequential: E(code q-1) + p_q;
    bidirectional: p_q.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.start = nn.Parameter(torch.empty(config.dim, dtype=torch.float32))  # p_0
        self.position = nn.Embedding(config.num_local - 1, config.dim)  # p_1, ...
        # One table a level. The finest one is read by sequential decoding only, the bidirectional policy reads none;
        # they are kept because the released models have (and count) them.
        self.codes = nn.ModuleList(nn.Embedding(size, config.dim) for size in config.codebook_sizes)
        self.blocks = Blocks(config.dim, config.head)
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS) for _ in config.codebook_sizes)
        self.logits = nn.ModuleList(Linear(config.dim, size, bias=False) for size in config.codebook_sizes)
        self.sources = [_sources(config, position) for position in range(config.num_local)]
        for level in _unread_levels(config):
            self.codes[level].requires_grad_(False)

    def inputs(self, h_MD: Tensor, local_MN: Tensor, group: range) -> Tensor:
        """Inputs of the positions in ``group``, [M, len(group), D]; reads only codes of earlier groups."""
        config = self.config
        inputs = []
        for q in group:
            x_MD = h_MD + self.start if q == 0 else self.position.weight[q - 1].expand_as(h_MD)
            for source in self.sources[q]:
                x_MD = x_MD + self.codes[config.local_levels[source]](local_MN[:, source])
            inputs.append(x_MD)
        return torch.stack(inputs, dim=1)

    def forward(self, h_MD: Tensor, local_MN: Tensor) -> list[Tensor]:
        """Teacher forcing: one pass over all positions; logits of each level, [M, width, K]."""
        x_MND = self.inputs(h_MD, local_MN, range(self.config.num_local))
        x_MND = self.blocks(x_MND, mask_TT=_group_mask(self.config).to(h_MD.device))
        parts = x_MND.split(list(self.config.level_widths), dim=1)
        return [self.logits[level](self.norms[level](part)) for level, part in enumerate(parts)]

    def draw(self, h_MD: Tensor, local_MN: Tensor, group: range, cache: StackCache) -> list[Tensor]:
        """One pass over a group, keys and values of the earlier ones cached: logits [M, positions, K] of each level."""
        x_MGD = self.blocks(self.inputs(h_MD, local_MN, group), cache=cache)
        logits: list[Tensor] = []
        for level, positions in split_group(self.config, group):
            own_MGD = x_MGD[:, positions.start - group.start : positions.stop - group.start]
            logits.append(self.logits[level](self.norms[level](own_MGD)))
        return logits

    def skip(self, h_MD: Tensor, cache: StackCache) -> None:
        """Position 0 when its code is given: only its keys and values are wanted."""
        self.blocks(self.inputs(h_MD, h_MD, range(1)), cache=cache)


def _sources(config: TransformerConfig, position: int) -> tuple[int, ...]:
    """Local positions whose code embeddings are added to the input of ``position``."""
    if position == 0 or config.decoding == "bidirectional":
        return ()
    if config.decoding == "sequential":
        return (position - 1,)
    return _ancestors(config, position)


class GroupPart(NamedTuple):
    """The positions of a group that are of one level."""

    level: int
    positions: range


def split_group(config: TransformerConfig, group: range) -> list[GroupPart]:
    """A group's positions by level, top first; they are neighbours."""
    levels = [config.local_levels[q] for q in group]
    starts = {level: group.start + levels.index(level) for level in sorted(set(levels))}
    return [GroupPart(level, range(start, start + levels.count(level))) for level, start in starts.items()]


def tabled_groups(config: TransformerConfig) -> list[range]:
    """Groups after the first pass whose positions read the top code and nothing else: their inputs can be tabled."""
    if config.decoding == "global" or config.head.num_layers == 0:
        return []
    return [g for g in config.groups if g.start > 0 and all(_sources(config, q) == (0,) for q in g)]


def _ancestors(config: TransformerConfig, position: int) -> tuple[int, ...]:
    """Parent, grandparent, ... of a local position, as local positions."""
    found = []
    while position > 0:
        level = config.local_levels[position]
        start, start_above = sum(config.level_widths[:level]), sum(config.level_widths[: level - 1])
        position = start_above + parents(level)[position - start]
        found.append(position)
    return tuple(found)


def _unread_levels(config: TransformerConfig) -> set[int]:
    read = {config.local_levels[s] for q in range(config.num_local) for s in _sources(config, q)}
    return set(range(config.num_levels)) - read


def _group_mask(config: TransformerConfig) -> Tensor:
    """[n, n], True where the row's position may look at the column's: its own group and those drawn before it."""
    group_of = torch.tensor(
        [index for index, group in enumerate(config.groups) for _ in group], dtype=torch.int64, device="cpu"
    )
    return group_of[:, None] >= group_of[None, :]


def build_head(config: TransformerConfig) -> CodeHead | PyramidHead:
    return CodeHead(config) if config.decoding == "global" else PyramidHead(config)


@torch.no_grad()
def head_weights(head: PyramidHead) -> HeadWeights:
    """The head's own tensors, quantized ones where a matrix has been rounded; only the rows of the positions may be a
    copy."""

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

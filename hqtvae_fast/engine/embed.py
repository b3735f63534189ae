"""What :func:`hqtvae_fast.ops.embed_codes` is told for the body's token and for the head's groups."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.embedding import LocalEmbedding, ReduceEmbedding
from hqtvae_fast.model.head import PyramidHead
from hqtvae_fast.model.layers import Blocks
from hqtvae_fast.ops.embed_codes import Mode, embed_codes


class BodyEmbedding:
    """The body's token, or IET's inputs, of the codes drawn at one step. Positions are added up once for all steps."""

    blocks: Blocks | None = None
    """IET's, where it has any: then what is made are their n inputs."""

    mode: Mode

    @torch.no_grad()
    def __init__(self, model: HQTransformer) -> None:
        embedding, config = model.embedding, model.config
        n, device = config.num_local, model.norm.weight.device
        place_TD = embedding.top_position(range(config.num_steps))
        positions = torch.arange(n, dtype=torch.int32, device=device)
        if isinstance(embedding, ReduceEmbedding):
            self.mode, self.tables = "interleave", [embedding.top.weight, embedding.bottom.weight]
            self.sources, self.rows = positions[None], place_TD.contiguous()
            return
        self.tables = _weights(embedding.codes)
        local_ND = _local_positions(embedding, n)
        if len(embedding.blocks.layers) == 0:
            self.mode, self.sources = "mean", positions[None]
            self.rows = (place_TD.float() / n + local_ND.mean(dim=0)).to(place_TD.dtype)
        else:
            self.mode, self.sources, self.blocks = "sum", positions[:, None], embedding.blocks
            rows_TND = local_ND.expand(len(place_TD), n, -1).clone()
            rows_TND[:, 0] += place_TD
            self.rows = rows_TND.flatten(0, 1).to(place_TD.dtype)

    def __call__(self, local_BN: Tensor, step: Tensor) -> Tensor:
        """[B, 1, D], or [B, n, D] for IET; ``step`` an int64 scalar on the device."""
        return embed_codes(local_BN, self.tables, self.sources, self.rows, step, mode=self.mode)


class HeadEmbedding:
    """The head's inputs of the groups after the first one."""

    def __init__(self, head: PyramidHead) -> None:
        self.head = head
        self.tables = _weights(head.codes)
        device = head.start.device
        self.sources = {
            group: torch.tensor([head.sources[q] for q in group], dtype=torch.int32, device=device)
            for group in head.config.groups
            if group.start > 0
        }

    def __call__(self, h_BD: Tensor, local_BN: Tensor, group: range) -> Tensor:
        """[B, G, D]."""
        if group.start == 0:  # bidirectional: position 0 reads h, the others nothing
            return self.head.inputs(h_BD, local_BN, group)
        rows = self.head.position.weight[group.start - 1 : group.stop - 1]
        return embed_codes(local_BN, self.tables, self.sources[group], rows)


def _weights(tables: nn.ModuleList) -> list[Tensor]:
    return [cast(nn.Embedding, table).weight for table in tables]


def _local_positions(embedding: LocalEmbedding, n: int) -> Tensor:
    """PE_local in fp32, [n, D]; zeros where there is nothing local to tell apart."""
    if embedding.local_position is None:
        return torch.zeros(
            n, embedding.top_position.table.weight.shape[1], device=embedding.top_position.table.weight.device
        )
    return embedding.local_position.weight.float()

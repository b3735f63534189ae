"""What :func:`hqtvae_fast.ops.embed_codes` is told for the body's token and for the head's groups."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.embedding import LocalEmbedding, ReduceEmbedding
from hqtvae_fast.model.head import PyramidHead
from hqtvae_fast.model.layers import Blocks
from hqtvae_fast.ops.kernels.embed_codes import Mode, embed_codes


class BodyEmbedding:
    """The body's token, or IET's inputs, of the codes drawn at one step. Positions are added up once for all steps, by
    :meth:`place`, in place: a capture begins with it, so that a replay reads the weights as they are."""

    blocks: Blocks | None = None
    """IET's, where it has any: then what is made are their n inputs."""

    mode: Mode

    @torch.no_grad()
    def __init__(self, model: HQTransformer) -> None:
        self.embedding, self.config = model.embedding, model.config
        positions = torch.arange(model.config.num_local, dtype=torch.int32, device=model.norm.weight.device)
        if isinstance(self.embedding, ReduceEmbedding):
            self.mode, self.sources = "interleave", positions[None]
            self.tables = [self.embedding.top.weight, self.embedding.bottom.weight]
        else:
            self.tables = _weights(self.embedding.codes)
            if len(self.embedding.blocks.layers) == 0:
                self.mode, self.sources = "mean", positions[None]
            else:
                self.mode, self.sources, self.blocks = "sum", positions[:, None], self.embedding.blocks
        self.rows = self._rows().contiguous()

    def place(self) -> None:
        """Add up the positions again."""
        self.rows.copy_(self._rows())

    def _rows(self) -> Tensor:
        """[T, D], or [T n, D] for IET."""
        embedding, n = self.embedding, self.config.num_local
        place_TD = embedding.top_position(range(self.config.num_steps))
        if isinstance(embedding, ReduceEmbedding):
            return place_TD.clone()
        local_ND = _local_positions(embedding, n)
        if self.mode == "mean":
            return (place_TD.float() / n + local_ND.mean(dim=0)).to(place_TD.dtype)
        rows_TND = local_ND.expand(len(place_TD), n, -1).clone()
        rows_TND[:, 0] += place_TD
        return rows_TND.flatten(0, 1).to(place_TD.dtype)

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
        weight = embedding.top_position.table.weight
        return torch.zeros(n, weight.shape[1], dtype=torch.float32, device=weight.device)
    return embedding.local_position.weight.float()

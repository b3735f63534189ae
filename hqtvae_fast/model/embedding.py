"""Input embeddings: a local pyramid of codes becomes one token of the body (eq. 5-8)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hqtvae_fast.config import WINDOW, TransformerConfig
from hqtvae_fast.model.head import PyramidHead
from hqtvae_fast.model.layers import Blocks
from hqtvae_fast.ops.kernels.embed_codes import Mode, embed_codes


class TopPosition(nn.Module):
    """PE_top: a table over the raster of top positions, or the sum of a row table and a column table."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.side = config.side
        rows = config.max_positions if config.position == "1d" else config.position_rows
        self.table = nn.Embedding(rows, config.dim)
        self.columns = nn.Embedding(rows, config.dim) if config.position == "2d" else None

    def forward(self, steps: range) -> Tensor:
        """Embeddings of the raster positions in ``steps``: [L, D]."""
        if self.columns is None:
            return self.table.weight[steps.start : steps.stop]
        rows_LD = self.table.weight[[step // self.side for step in steps]]
        return rows_LD + self.columns.weight[[step % self.side for step in steps]]


class LocalEmbedding(nn.Module):
    """IET: m_top = E_0(t) + PE_top + PE_local[0], m_k = E_level(b_k) + PE_local[k]; N_IET blocks; then the mean."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.widths = config.level_widths
        self.codes = nn.ModuleList(nn.Embedding(size, config.dim) for size in config.codebook_sizes)
        self.top_position = TopPosition(config)
        # Global conditioning has one code a position, hence nothing local to tell apart.
        self.local_position = nn.Embedding(config.num_local, config.dim) if config.num_local > 1 else None
        self.blocks = Blocks(config.dim, config.body, num_layers=config.iet_layers)

    def forward(self, local_BLN: Tensor, steps: range) -> Tensor:
        """Pyramids [B, L, n] at the raster positions ``steps`` -> tokens [B, L, D]."""
        B, L, N = local_BLN.shape
        levels = zip(self.codes, local_BLN.split(list(self.widths), dim=2), strict=True)
        m_BLND = torch.cat([embed(codes) for embed, codes in levels], dim=2)
        if self.local_position is not None:
            m_BLND = m_BLND + self.local_position.weight
        top_LD = self.top_position(steps)
        if len(self.blocks.layers) == 0:  # the mean spreads PE_top evenly: add it after, to one token and not to n
            return m_BLND.mean(dim=2) + top_LD / N
        m_BLND[:, :, 0] += top_LD
        return self.blocks(m_BLND.view(B * L, N, -1)).mean(dim=1).view(B, L, -1)


class ReduceEmbedding(nn.Module):
    """The FFHQ model's: E_0(t) + PE_top + four D/4-wide bottom embeddings interleaved, channel = 4*c + k."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        top_size, bottom_size = config.codebook_sizes
        self.top = nn.Embedding(top_size, config.dim)
        self.bottom = nn.Embedding(bottom_size, config.dim // WINDOW**2)
        self.top_position = TopPosition(config)

    def forward(self, local_BLN: Tensor, steps: range) -> Tensor:
        """Pyramids [B, L, 5] at the raster positions ``steps`` -> tokens [B, L, D]."""
        bottom_BLD = self.bottom(local_BLN[:, :, 1:]).transpose(2, 3).flatten(2)
        return self.top(local_BLN[:, :, 0]) + self.top_position(steps) + bottom_BLD


def build_embedding(config: TransformerConfig) -> LocalEmbedding | ReduceEmbedding:
    return ReduceEmbedding(config) if config.embedding == "reduce" else LocalEmbedding(config)


# -------------------------------------------------------------------------------------------------------- while drawing


class BodyEmbedding:
    """The body's token, or IET's inputs, of the codes drawn at one step, by :func:`embed_codes`. Positions are added up
    once for all steps, by :meth:`place`, in place: a capture begins with it, so that a replay reads the weights as they
    are."""

    blocks: Blocks | None = None
    """IET's, where it has any: then what is made are their n inputs."""

    mode: Mode

    @torch.no_grad()
    def __init__(self, embedding: LocalEmbedding | ReduceEmbedding, config: TransformerConfig) -> None:
        self.embedding, self.config = embedding, config
        device = embedding.top_position.table.weight.device
        positions = torch.arange(config.num_local, dtype=torch.int32, device=device)
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
    """The head's inputs of the groups after the first one, by :func:`embed_codes`."""

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

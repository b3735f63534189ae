"""Input embeddings: a local pyramid of codes becomes one token of the body (eq. 5-8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hqtvae_fast.config import WINDOW, TransformerConfig
from hqtvae_fast.model.layers import Blocks


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

"""Transformer blocks, shared by the body (MT), the prediction head (PHT) and the input embedding (IET).

Shapes: B batch, T positions, D width, H heads, E = D/H head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hqtvae_fast.config import BlocksConfig, Gelu
from hqtvae_fast.model.attention import attention
from hqtvae_fast.model.linear import Linear
from hqtvae_fast.model.plain import plain
from hqtvae_fast.ops.kernels.decode_attention import decode_attention

LAYER_NORM_EPS = 1e-5


class LayerCache(Protocol):
    """Keys and values of one layer's earlier positions: buffers [B, H, C, E], of which the first ``length`` count."""

    @property
    def keys(self) -> Tensor: ...

    @property
    def values(self) -> Tensor: ...

    @property
    def length(self) -> int: ...

    def append(self, k_BHTE: Tensor, v_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new positions; return all keys and values, theirs included."""


class StackCache(Protocol):
    """The caches of a stack's layers, which all hold the same number of positions."""

    @property
    def length(self) -> int: ...

    def layer(self, index: int) -> LayerCache: ...

    def advance(self, positions: int) -> None: ...


class SelfAttention(nn.Module):
    """Multi-head self-attention, scale E^-1/2, with query, key and value in one projection (rows q, then k, then v)."""

    def __init__(self, dim: int, config: BlocksConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        self.qkv = Linear(dim, 3 * dim, bias=config.attention_bias)
        self.out = Linear(dim, dim, bias=config.attention_bias)

    def forward(self, x_BTD: Tensor, mask_TT: Tensor | None, causal: bool, cache: LayerCache | None) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BT3HE = self.qkv(x_BTD).view(B, T, 3, self.num_heads, -1)
        if cache is not None and not causal:
            return self.out(decode_attention(qkv_BT3HE, cache.keys, cache.values, cache.length))
        q_BHTE, k_BHSE, v_BHSE = qkv_BT3HE.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            k_BHSE, v_BHSE = cache.append(k_BHSE, v_BHSE)
        dropout = self.dropout if self.training else 0.0
        y_BHTE = attention(q_BHTE, k_BHSE, v_BHSE, mask=mask_TT, causal=causal, dropout=dropout)
        return self.out(y_BHTE.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Linear to 4D, GELU, linear back."""

    def __init__(self, dim: int, config: BlocksConfig) -> None:
        super().__init__()
        self.up = Linear(dim, 4 * dim, bias=config.mlp_bias)
        self.down = Linear(4 * dim, dim, bias=config.mlp_bias)
        self.gelu: Gelu = config.gelu

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gelu == "exact":
            return self.down(self.up.gelu(x_BTD) if plain(self.up, Linear) else F.gelu(self.up(x_BTD)))
        hidden = self.up(x_BTD)
        return self.down(hidden * torch.sigmoid(1.702 * hidden))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); dropout on what is added."""

    def __init__(self, dim: int, config: BlocksConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = SelfAttention(dim, config)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = MLP(dim, config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x_BTD: Tensor, mask_TT: Tensor | None, causal: bool, cache: LayerCache | None) -> Tensor:
        attended_BTD = self.attention(self.norm1(x_BTD), mask_TT, causal, cache)
        if not self.training:
            x_BTD = x_BTD + attended_BTD
            return x_BTD + self.mlp(self.norm2(x_BTD))
        x_BTD = x_BTD + self.dropout(attended_BTD)
        return x_BTD + self.dropout(self.mlp(self.norm2(x_BTD)))


class Blocks(nn.Module):
    """A stack of blocks.

    With a ``cache``, x holds the positions after the cached ones and sees all of them; T > 1 new positions see each
    other wholly, unless ``causal``. Without one, ``mask_TT`` (True: may look) or ``causal`` says who sees whom.
    ``activation_checkpointing``: in training keep each block's input only, and compute the rest again going backward.
    """

    activation_checkpointing = False

    def __init__(self, dim: int, config: BlocksConfig, num_layers: int | None = None) -> None:
        super().__init__()
        count = config.num_layers if num_layers is None else num_layers
        self.layers = nn.ModuleList(Block(dim, config) for _ in range(count))

    def forward(
        self,
        x_BTD: Tensor,
        *,
        mask_TT: Tensor | None = None,
        causal: bool = False,
        cache: StackCache | None = None,
    ) -> Tensor:
        if self.activation_checkpointing and self.training and cache is None and torch.is_grad_enabled():
            for block in self.layers:  # checkpoint() also brings back the random state, so that dropout is the same
                x_BTD = checkpoint(block, x_BTD, mask_TT, causal, None, use_reentrant=False)
            return x_BTD
        for index, block in enumerate(self.layers):
            x_BTD = block(x_BTD, mask_TT, causal, None if cache is None else cache.layer(index))
        if cache is not None:
            cache.advance(x_BTD.shape[1])
        return x_BTD

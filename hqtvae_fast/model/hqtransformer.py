"""HQ-Transformer, stage 2: one transformer for every decoding policy of the paper (eq. 5-14).

Three parts: an embedding of each local pyramid (IET), a causal body over [prefix, u_1, ..., u_{T-1}] (MT), and a head
that predicts the codes of one local pyramid from the body's output there (PHT).

Shapes: B images, P prefix positions, T top positions, n local positions, D width, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hqtvae_fast.arguments import integers
from hqtvae_fast.codes import check_range
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.model.conditioning import TokenPrefix, build_prefix
from hqtvae_fast.model.embedding import build_embedding
from hqtvae_fast.model.head import build_head
from hqtvae_fast.model.layers import LAYER_NORM_EPS, Blocks, StackCache
from hqtvae_fast.model.linear import pack_linears, round_linears
from hqtvae_fast.model.prepared import Prepared
from hqtvae_fast.model.pyramid import join_windows, scramble_middle, to_local
from hqtvae_fast.modes import single_precision

INIT_STD = 0.02


@dataclass(frozen=True)
class HQLogits:
    """Teacher-forced predictions.

    ``levels``: for each level, top first, [B, h*w, K], positions row by row in the level's whole map. ``text``:
    [B, P-1, V], prediction of prefix token p+1 at position p; None without a token prefix.
    """

    levels: tuple[Tensor, ...]
    text: Tensor | None = None


class HQTransformer(Prepared):
    """p(codes | condition), see :class:`hqtvae_fast.config.TransformerConfig` for the choices."""

    @single_precision()
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.prefix = build_prefix(config)
        self.embedding = build_embedding(config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.body = Blocks(config.dim, config.body)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.head = build_head(config)
        self.reset_parameters()
        self.remember()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices and tables N(0, 0.02), biases 0, the start vectors N(0, 1), as the released model begins."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        for name, parameter in self.named_parameters():
            if name.endswith(".start"):
                parameter.normal_()

    def _make(self) -> list[Tensor]:
        quantized = round_linears(self)
        if self.prepared:
            pack_linears(self)
        return quantized

    def set_activation_checkpointing(self, on: bool) -> HQTransformer:
        """Of all stacks of blocks, see :class:`Blocks`: training takes less memory and a forward pass more."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.activation_checkpointing = on
        return self

    def forward(self, codes: Sequence[Tensor], condition: Tensor | None = None) -> HQLogits:
        """Teacher forcing.

        ``codes``: one integer tensor of any width a predicted level, top first, [B, h, w] or [B, h*w] row by row.
        ``condition``: labels [B], tokens [B, P] or None, as the configuration says. Raises ValueError on other shapes,
        and on a CPU on codes out of range.
        """
        if not torch.is_grad_enabled():
            self.look()
        with self.in_own_dtype():
            return self._forward(codes, condition)

    def _forward(self, codes: Sequence[Tensor], condition: Tensor | None) -> HQLogits:
        side, config = self.config.side, self.config
        if len(codes) != config.num_levels:
            raise ValueError(f"codes: expected {config.num_levels} levels; got {len(codes)}")
        names = [f"codes of level {level}" for level in range(len(codes))]
        codes = [integers(name, level) for name, level in zip(names, codes, strict=True)]
        local_BTN = to_local(codes, side)
        for name, level, size in zip(names, codes, config.codebook_sizes, strict=True):
            check_range(name, level, size)
        B, T, N = local_BTN.shape
        prefix_BPD = self.prefix(condition, B)
        tokens_BTD = self.embedding(local_BTN[:, :-1], range(T - 1))
        h_BSD = self.run_body(torch.cat([prefix_BPD, tokens_BTD], dim=1))
        P = prefix_BPD.shape[1]
        read_BTN = scramble_middle(local_BTN, codes[1], side) if config.scrambled_middle else local_BTN
        levels = self.head(h_BSD[:, P - 1 :].reshape(B * T, -1), read_BTN.view(B * T, N))
        text = self.prefix.logits(h_BSD[:, : P - 1]) if isinstance(self.prefix, TokenPrefix) else None
        maps = [join_windows(part.view(B, T, *part.shape[1:]), side, level) for level, part in enumerate(levels)]
        return HQLogits(levels=tuple(part.flatten(1, 2) for part in maps), text=text)

    def run_body(self, x_BSD: Tensor, cache: StackCache | None = None) -> Tensor:
        """MT and its LayerNorm over a whole sequence, or over the positions after those in ``cache``: [B, S, D]."""
        causal = x_BSD.shape[1] > 1
        if causal and cache is not None and cache.length > 0:
            raise ValueError("a cached body takes its prefix whole, then one position at a time")
        return self.norm(self.body(self.dropout(x_BSD), causal=causal, cache=cache))

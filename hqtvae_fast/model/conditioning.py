"""What comes before the first top code: the prefix that conditions a drawing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hqtvae_fast.arguments import integers
from hqtvae_fast.config import TransformerConfig
from hqtvae_fast.model.layers import LAYER_NORM_EPS
from hqtvae_fast.model.linear import Linear


class StartVector(nn.Module):
    """No condition: one learned start-of-sequence vector."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(config.dim, dtype=torch.float32))

    def forward(self, condition: Tensor | None, batch: int) -> Tensor:
        if condition is not None:
            raise ValueError("this model is unconditional: expected no condition, got one")
        return self.start.expand(batch, 1, -1)


class ClassPrefix(nn.Module):
    """A class label: one embedding as start of sequence. One more where there is a null condition."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.prefix_entries + config.null_condition, config.dim)

    def forward(self, condition: Tensor | None, batch: int) -> Tensor:
        labels_B = _expect(condition, "class labels", (batch,))
        return self.embedding(labels_B)[:, None]


class TokenPrefix(nn.Module):
    """A sequence of tokens (text, or the top codes), which training also predicts, with a head of its own.
    One token more, never predicted, where there is a null condition."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.length = config.prefix_length
        self.embedding = nn.Embedding(config.prefix_entries + config.null_condition, config.dim)
        self.position = nn.Embedding(config.prefix_length, config.dim)
        # The released global model reads its prefix predictions straight from the body's last LayerNorm.
        self.norm = nn.Identity() if config.condition == "codes" else nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.head = Linear(config.dim, config.prefix_vocab_size, bias=False)

    def forward(self, condition: Tensor | None, batch: int) -> Tensor:
        tokens_BP = _expect(condition, "tokens", (batch, self.length))
        return self.embedding(tokens_BP) + self.position.weight

    def logits(self, h_BPD: Tensor) -> Tensor:
        """Prediction of token p+1 from position p: [B, P, D] -> [B, P, V]."""
        return self.head(self.norm(h_BPD))


def build_prefix(config: TransformerConfig) -> StartVector | ClassPrefix | TokenPrefix:
    if config.condition == "none":
        return StartVector(config)
    if config.condition == "class":
        return ClassPrefix(config)
    return TokenPrefix(config)


def _expect(condition: Tensor | None, what: str, shape: tuple[int, ...]) -> Tensor:
    if condition is None:
        raise ValueError(f"this model is conditional: expected {what} of shape {list(shape)}, got none")
    if tuple(condition.shape) != shape:
        raise ValueError(f"{what}: expected shape {list(shape)}; got {list(condition.shape)}")
    return integers(what, condition)

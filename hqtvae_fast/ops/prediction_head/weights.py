"""What a prediction head is made of (PHT, eq. 11-14), as tensors: the operation knows no modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

LEVELS, BOTTOMS = 2, 4
POSITIONS = 1 + BOTTOMS
LAYER_NORM_EPS = 1e-5
_BLOCK = ("norm1_weight", "norm1_bias", "qkv", "qkv_bias", "out", "out_bias")
_BLOCK += ("norm2_weight", "norm2_bias", "up", "up_bias", "down", "down_bias")
_LEVEL = ("norm_weight", "norm_bias", "logits")
_FIRST = ("start", "positions", "codes")


@dataclass(frozen=True)
class BlockWeights:
    """One transformer block: LayerNorms [D], projections [out, in], biases [out] or None."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    """[3 D, D]: rows of queries, keys, values, each by attention heads."""
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    norm2_weight: Tensor
    norm2_bias: Tensor
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True)
class LevelWeights:
    """What follows the blocks for one level of codes: a LayerNorm [D] and logits [K, D]."""

    norm_weight: Tensor
    norm_bias: Tensor
    logits: Tensor


@dataclass(frozen=True)
class HeadWeights:
    """``start`` p_0 [D]; ``positions`` p_1..p_4 [4, D]; ``codes`` E_head of top codes [K, D]; blocks; two levels."""

    start: Tensor
    positions: Tensor
    codes: Tensor
    blocks: tuple[BlockWeights, ...]
    levels: tuple[LevelWeights, ...]

    def __post_init__(self) -> None:
        """ValueError unless shapes fit each other."""
        D = self.start.shape[-1]
        if len(self.levels) != LEVELS or not self.blocks:
            raise ValueError(f"expected blocks, and 2 levels; got {len(self.blocks)} and {len(self.levels)}")
        wanted = {"start": (D,), "positions": (BOTTOMS, D), "codes": (len(self.levels[0].logits), D)}
        sizes = {"qkv": (3 * D, D), "out": (D, D), "up": (4 * D, D), "down": (D, 4 * D)}
        for number in range(len(self.blocks)):
            for name in _BLOCK:
                rows = sizes[name.removesuffix("_bias")][0] if not name.startswith("norm") else D
                wanted[f"blocks.{number}.{name}"] = sizes.get(name, (rows,))
        for number, level in enumerate(self.levels):
            wanted |= {f"levels.{number}.{name}": (D,) for name in _LEVEL[:2]}
            wanted[f"levels.{number}.logits"] = (len(level.logits), D)
        for name, tensor in self.named().items():
            if tensor is not None and tuple(tensor.shape) != wanted[name]:
                raise ValueError(f"{name}: expected {list(wanted[name])}; got {list(tensor.shape)}")
            if tensor is not None and (tensor.dtype != self.start.dtype or tensor.device != self.start.device):
                expected, got = (f"{x.dtype} on {x.device}" for x in (self.start, tensor))
                raise ValueError(f"{name}: expected {expected}, as start; got {got}")

    def named(self) -> dict[str, Tensor | None]:
        """All tensors, in a fixed order."""
        found = {name: getattr(self, name) for name in _FIRST}
        for number, level in enumerate(self.levels):
            found |= {f"levels.{number}.{name}": getattr(level, name) for name in _LEVEL}
        for number, block in enumerate(self.blocks):
            found |= {f"blocks.{number}.{name}": getattr(block, name) for name in _BLOCK}
        return found

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None]) -> HeadWeights:
        """From the values of :meth:`named`."""
        left = list(tensors)

        def take(names: tuple[str, ...]) -> dict[str, Tensor]:
            taken, left[:] = left[: len(names)], left[len(names) :]
            return dict(zip(names, taken, strict=True))  # type: ignore[arg-type]

        first = take(_FIRST)
        levels = tuple(LevelWeights(**take(_LEVEL)) for _ in range(LEVELS))
        blocks = []
        while left:
            blocks.append(BlockWeights(**take(_BLOCK)))
        return cls(**first, blocks=tuple(blocks), levels=levels)


__all__ = ["BOTTOMS", "LAYER_NORM_EPS", "LEVELS", "POSITIONS", "BlockWeights", "HeadWeights", "LevelWeights"]

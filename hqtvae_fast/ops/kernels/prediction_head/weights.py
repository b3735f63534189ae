"""What a prediction head is made of (PHT, eq. 11-14), as tensors: the operation knows no modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.skinny_linear.reference import QUANTIZED

LEVELS, BOTTOMS = 2, 4
POSITIONS = 1 + BOTTOMS
LAYER_NORM_EPS = 1e-5
_ATTENTION = ("norm1_weight", "norm1_bias", "qkv", "qkv_scale", "qkv_bias", "out", "out_scale", "out_bias")
_MLP = ("norm2_weight", "norm2_bias", "up", "up_scale", "up_bias", "down", "down_scale", "down_bias")
_BLOCK = (*_ATTENTION, *_MLP)
LEVEL_NAMES = ("norm_weight", "norm_bias", "logits", "logits_scale")
_MATRICES = ("qkv", "out", "up", "down", "logits")
_FIRST = ("start", "positions", "codes")


@dataclass(frozen=True)
class BlockWeights:
    """One transformer block: LayerNorms [D], projections [out, in], biases [out] or None. A projection is of the other
    tensors' dtype, its scale None; or int8 or fp8 (e4m3) with a scale fp32 [out], as
    :func:`hqtvae_fast.ops.kernels.skinny_linear.reference.quantize` gives both."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    """[3 D, D]: rows of queries, keys, values, each by attention heads."""
    qkv_scale: Tensor | None
    qkv_bias: Tensor | None
    out: Tensor
    out_scale: Tensor | None
    out_bias: Tensor | None
    norm2_weight: Tensor
    norm2_bias: Tensor
    up: Tensor
    up_scale: Tensor | None
    up_bias: Tensor | None
    down: Tensor
    down_scale: Tensor | None
    down_bias: Tensor | None


@dataclass(frozen=True)
class LevelWeights:
    """What follows the blocks for one level of codes: a LayerNorm [D] and logits [K, D], stored as projections are."""

    norm_weight: Tensor
    norm_bias: Tensor
    logits: Tensor
    logits_scale: Tensor | None


@dataclass(frozen=True)
class HeadWeights:
    """``start`` p_0 [D]; ``positions`` p_1..p_4 [4, D]; ``codes`` E_head of top codes [K, D]; blocks; two levels."""

    start: Tensor
    positions: Tensor
    codes: Tensor
    blocks: tuple[BlockWeights, ...]
    levels: tuple[LevelWeights, ...]

    def __post_init__(self) -> None:
        """ValueError unless shapes and dtypes fit each other."""
        D = self.start.shape[-1]
        if len(self.levels) != LEVELS or not self.blocks:
            raise ValueError(f"expected blocks, and 2 levels; got {len(self.blocks)} and {len(self.levels)}")
        wanted: dict[str, tuple[int, ...]] = {"start": (D,), "positions": (BOTTOMS, D)}
        wanted["codes"] = (len(self.levels[0].logits), D)
        sizes = {"qkv": (3 * D, D), "out": (D, D), "up": (4 * D, D), "down": (D, 4 * D)}
        for number in range(len(self.blocks)):
            for name in _BLOCK:
                rows = D if name.startswith("norm") else sizes[name.partition("_")[0]][0]
                wanted[f"blocks.{number}.{name}"] = sizes.get(name, (rows,))
        for number, level in enumerate(self.levels):
            wanted |= {f"levels.{number}.{name}": (D,) for name in LEVEL_NAMES[:2]}
            wanted[f"levels.{number}.logits"] = (len(level.logits), D)
            wanted[f"levels.{number}.logits_scale"] = (len(level.logits),)
        named = self.named()
        for name, tensor in named.items():
            if tensor is not None and tuple(tensor.shape) != wanted[name]:
                raise ValueError(f"{name}: expected {list(wanted[name])}; got {list(tensor.shape)}")
            if tensor is not None:
                self._check_kind(name, tensor, named.get(f"{name}_scale"))

    def _check_kind(self, name: str, tensor: Tensor, scale: Tensor | None) -> None:
        """ValueError on a wrong dtype or device. ``scale``: what belongs to ``tensor``, if it is a matrix."""
        dtype, device = self.start.dtype, self.start.device
        if name.endswith("_scale"):
            dtype = torch.float32
        elif _is_matrix(name) and scale is not None and tensor.dtype in QUANTIZED.values():
            dtype = tensor.dtype
        if _is_matrix(name) and (scale is None) != (tensor.dtype == self.start.dtype):
            raise ValueError(f"{name}: expected {self.start.dtype}, or int8 or fp8 and a scale; got {tensor.dtype}")
        if tensor.dtype != dtype or tensor.device != device:
            like = "" if name.endswith("_scale") else ", as start"
            got = f"{tensor.dtype} on {tensor.device}"
            raise ValueError(f"{name}: expected {dtype} on {device}{like}; got {got}")

    @property
    def stored(self) -> str | None:
        """How all matrices are stored: "int8", "fp8", or "plain", which is start's dtype; None where they differ."""
        names = {dtype: name for name, dtype in QUANTIZED.items()}
        found = {names.get(x.dtype, "plain") for name, x in self.named().items() if x is not None and _is_matrix(name)}
        return found.pop() if len(found) == 1 else None

    def named(self) -> dict[str, Tensor | None]:
        """All tensors, in a fixed order."""
        found = {name: getattr(self, name) for name in _FIRST}
        for number, level in enumerate(self.levels):
            found |= {f"levels.{number}.{name}": getattr(level, name) for name in LEVEL_NAMES}
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
        levels = tuple(LevelWeights(**take(LEVEL_NAMES)) for _ in range(LEVELS))
        blocks = []
        while left:
            blocks.append(BlockWeights(**take(_BLOCK)))
        return cls(**first, blocks=tuple(blocks), levels=levels)


def _is_matrix(name: str) -> bool:
    return name.rpartition(".")[2] in _MATRICES


__all__ = ["BOTTOMS", "LAYER_NORM_EPS", "LEVELS", "POSITIONS", "BlockWeights", "HeadWeights", "LevelWeights"]

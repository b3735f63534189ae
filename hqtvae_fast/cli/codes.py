"""Files of codes: safetensors with ``level_0`` (top), ``level_1`` ..., and the pictures' names as metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hqtvae_fast.config import VAEConfig
from hqtvae_fast.files import json_text, write_file

FORMAT = "hqtvae_fast codes"


@dataclass(frozen=True)
class Codes:
    """``levels``: int64 [N, h, w] or None where the file lacks one, top first. ``names``: one a picture."""

    levels: tuple[Tensor | None, ...]
    names: tuple[str, ...]


def write_codes(path: Path, levels: Sequence[Tensor], names: Sequence[str]) -> None:
    """Codes as int32 [N, h, w] a level."""
    tensors = {f"level_{index}": level.to(torch.int32).contiguous() for index, level in enumerate(levels)}
    metadata = {"format": FORMAT, "names": json_text(list(names))}
    write_file(path, safetensors.torch.save(tensors, metadata))


def read_codes(path: Path, config: VAEConfig) -> Codes:
    """Codes that fit a model; ValueError naming the file, and the level, otherwise."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            keys, metadata = list(file.keys()), file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or not a safetensors file ({error})") from error
    expected = [f"level_{index}" for index in range(config.num_levels)]
    if not keys or not set(keys) <= set(expected):
        raise ValueError(f"{path}: expected some of {', '.join(expected)}; got {', '.join(sorted(keys)) or 'nothing'}")
    for index, key in enumerate(expected):
        if key in tensors:
            _check_level(f"{path}: {key}", tensors[key], config.level_sides[index], config.codebook_sizes[index])
    sizes = {len(level) for level in tensors.values()}
    if len(sizes) > 1:
        raise ValueError(f"{path}: expected the same number of pictures in each level; got {sorted(sizes)}")
    levels = tuple(tensors[key].long() if key in tensors else None for key in expected)
    return Codes(levels, _read_names(metadata.get("names"), sizes.pop()))


def _check_level(where: str, codes: Tensor, side: int, size: int) -> None:
    integer = not (codes.is_floating_point() or codes.is_complex() or codes.dtype is torch.bool)
    if not integer or codes.ndim != 3 or tuple(codes.shape[1:]) != (side, side) or len(codes) == 0:
        dtype = str(codes.dtype).removeprefix("torch.")
        raise ValueError(f"{where}: expected integers [N, {side}, {side}]; got {dtype} {list(codes.shape)}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= size:
        raise ValueError(f"{where}: expected codes from 0 to {size - 1}; got {low}..{high}")


def _read_names(text: str | None, number: int) -> tuple[str, ...]:
    """The names stored, or numbers where a file from elsewhere has none that fit."""
    try:
        names = json.loads(text or "[]")
    except json.JSONDecodeError:
        names = []
    if isinstance(names, list) and len(names) == number and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(f"picture-{index:05d}" for index in range(number))


def leave_out(levels: Sequence[Tensor | None], num_levels: int, keep: int | None) -> list[Tensor | None]:
    """One entry a level, None where it is missing or left out; ValueError if the level to keep is missing."""
    padded = [*levels, *[None] * (num_levels - len(levels))]
    if keep is None:
        return padded
    kept: list[Tensor | None] = [None] * num_levels
    kept[keep] = padded[keep]
    if kept[keep] is None:
        raise ValueError(f"{'--top-only' if keep == 0 else '--bottom-only'}: there are no codes of that level")
    return kept

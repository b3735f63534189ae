"""Files of codes: safetensors with ``level_0`` (top), ``level_1`` ..., and the pictures' names and the plan's id as
metadata; shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hqtvae_fast.codes import read_levels
from hqtvae_fast.config import VAEConfig
from hqtvae_fast.files import json_text, parse_json, write_file

if TYPE_CHECKING:
    from hqtvae_fast.model import HQVAE
    from hqtvae_fast.train.data import CodedPictures

FORMAT = "hqtvae_fast codes"


@dataclass(frozen=True)
class Codes:
    """``levels``: integers [N, h, w] or None where the file lacks one, top first. ``names``: one a picture."""

    levels: tuple[Tensor | None, ...]
    names: tuple[str, ...]
    shards: CodedPictures | None = None
    """Where they are from, if they are of shards."""

    def check_vae(self, vae: HQVAE) -> None:
        """ValueError where shards say that another VAE made them."""
        if self.shards is not None:
            from hqtvae_fast.train.codes.stored import check_vae

            check_vae(self.shards, vae)


def write_codes(path: Path, levels: Sequence[Tensor], names: Sequence[str], plan: str | None = None) -> None:
    """Codes as int32 [N, h, w] a level; ``plan``: the id of the plan that computed them."""
    tensors = {f"level_{index}": level.to(torch.int32).contiguous() for index, level in enumerate(levels)}
    metadata = {"format": FORMAT, "names": json_text(list(names))} | ({} if plan is None else {"plan": plan})
    write_file(path, safetensors.torch.save(tensors, metadata))


def read_codes(path: Path, config: VAEConfig) -> Codes:
    """Codes that fit a model, of a safetensors file or of shards: a folder, a tar, or a pattern of several.

    ValueError naming the file, and the level, otherwise.
    """
    codes = _read_file(path, config) if path.is_file() and path.suffix != ".tar" else _read_shards(path, config)
    if not codes.names:
        raise ValueError(f"{path}: expected codes of one picture or more; got none")
    return codes


def _read_shards(path: Path, config: VAEConfig) -> Codes:
    from hqtvae_fast.train.data import CodedPictures, open_source
    from hqtvae_fast.train.data.coded import stacked

    if not path.exists() and not any(mark in str(path) for mark in "*?[{"):
        raise ValueError(f"{path}: no such file")
    pictures = open_source(path, codes=True)
    if not isinstance(pictures, CodedPictures):
        raise ValueError(f"{path}: expected codes, a safetensors file or shards of them; got pictures")
    levels = stacked(pictures, config.level_sides, config.codebook_sizes)
    names = (pictures.fields(index).get("key", pictures.key(index)) for index in range(len(pictures)))
    return Codes(tuple(levels), tuple(map(str, names)), pictures)


def _read_file(path: Path, config: VAEConfig) -> Codes:
    try:
        with safe_open(path, framework="pt") as file:
            keys, metadata = list(file.keys()), file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or not a safetensors file ({error})") from error
    expected = [f"level_{index}" for index in range(config.num_levels)]
    if not keys or not set(keys) <= set(expected):
        raise ValueError(f"{path}: expected some of {', '.join(expected)}; got {', '.join(sorted(keys)) or 'nothing'}")
    levels, count = read_levels([tensors.get(key) for key in expected], config, str(path))
    return Codes(tuple(levels), _read_names(metadata.get("names"), count))


def _read_names(text: str | None, number: int) -> tuple[str, ...]:
    """The names stored, or numbers where a file from elsewhere has none that fit."""
    try:
        names = parse_json(text or "[]", "names")
    except ValueError:
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

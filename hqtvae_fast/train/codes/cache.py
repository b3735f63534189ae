"""Codes of a set of pictures, computed once: one safetensors file that stage 2 reads in the pictures' place.

The file holds the tensors ``latents`` or ``codes`` and ``broken``, and in its metadata what it was made from:

- ``latents`` float32 [N, V, d, h, w]: the quantiser's input, from which codes and the residuals of soft labels follow
  (:meth:`HQVAE.quantize`, a thousandth of the encoder's arithmetic). In fp32, as codes are chosen by comparing
  distances; with the paper's model 256 KiB a picture, so that ImageNet takes 336 GB, twice that when mirrored.
- ``codes`` int16 or int32 [N, V, S]: all levels' codes, top level first, each row by row. 640 bytes a picture.
- ``broken`` bool [N]: pictures that could not be read.

N pictures in the source's order; V = 2 versions if mirrored (plain, mirrored), else 1. All are the centre squares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hqtvae_fast.codes import check_range
from hqtvae_fast.config import ConfigError, VAEConfig
from hqtvae_fast.model import HQVAE
from hqtvae_fast.train.data import Content, UnreadableError

FORMAT = "hqtvae_fast code cache, version 1"
BROKEN = "broken"


@dataclass(frozen=True)
class CacheSpec:
    """What a run wants of a cache, or what is written into one.

    data: the source's fingerprint. vae: :func:`vae_hash`. config: of that VAE. pictures: N. content: the tensor.
    """

    data: str
    vae: str
    config: VAEConfig
    pictures: int
    content: Content
    mirrored: bool

    @property
    def versions(self) -> int:
        return 2 if self.mirrored else 1

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of one version of one picture."""
        sides = self.config.level_sides
        if self.content == "latents":
            return (self.config.embed_dim, sides[-1], sides[-1])
        return (sum(side * side for side in sides),)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest that holds the values; little-endian, as safetensors has it."""
        if self.content == "latents":
            return np.dtype("<f4")
        return np.dtype("<i2" if max(self.config.codebook_sizes) <= 2**15 else "<i4")

    @property
    def picture_bytes(self) -> int:
        """Bytes of all versions of one picture."""
        return self.versions * prod(self.row) * self.dtype.itemsize

    def metadata(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "data": self.data,
            "vae": self.vae,
            "resolution": str(self.config.resolution),
            "pictures": str(self.pictures),
            "content": self.content,
            "mirrored": str(self.mirrored).lower(),
        }

    def header(self) -> bytes:
        """The file up to the tensors' bytes: ``content``, then ``broken``.

        Written here since the library's writer wants all tensors in memory, which a cache need not fit into.
        """
        names = {"<f4": "F32", "<i2": "I16", "<i4": "I32"}
        end = self.pictures * self.picture_bytes
        entries = {
            "__metadata__": self.metadata(),
            self.content: {
                "dtype": names[self.dtype.str],
                "shape": [self.pictures, self.versions, *self.row],
                "data_offsets": [0, end],
            },
            BROKEN: {"dtype": "BOOL", "shape": [self.pictures], "data_offsets": [end, end + self.pictures]},
        }
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


class CodeCache:
    """A cache, open for reading. ConfigError if the file is none, or was not made from what ``spec`` says.

    A cache of latents serves a run that needs codes only, and one with mirrored pictures a run that does not flip.
    The file is mapped into memory, not read: processes share its pages, and each opens it anew.
    """

    def __init__(self, file: Path, spec: CacheSpec) -> None:
        self.file, self.spec = file, spec
        if file.is_dir():
            raise ConfigError(f"{file}: expected a code cache, a file; got a folder")
        try:
            with safe_open(file, framework="np") as opened:
                found = opened.metadata() or {}
                _check(file, spec, found)
                self._broken = opened.get_tensor(BROKEN)
                self.content: Content = "latents" if found["content"] == "latents" else "codes"
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file}: not a code cache, or a damaged one ({error})") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return CodeCache, (self.file, self.spec)  # a map cannot be sent to another process

    @cached_property
    def _rows(self) -> Any:
        return safe_open(self.file, framework="np").get_slice(self.content)

    @property
    def broken(self) -> int:
        """How many pictures could not be read when the cache was made."""
        return int(self._broken.sum())

    def read(self, index: int, mirrored: bool) -> Tensor:
        """What is stored of a picture: latents float32 [d, h, w], or codes [S]. UnreadableError if it was broken,
        ValueError on a code that the VAE does not have."""
        if self._broken[index]:
            raise UnreadableError("not readable when the code cache was made")
        version = int(mirrored)
        found = torch.from_numpy(self._rows[index : index + 1, version : version + 1][0, 0])
        if self.content == "codes":
            config = self.spec.config
            levels = found.split([side * side for side in config.level_sides])
            for level, (codes, size) in enumerate(zip(levels, config.codebook_sizes, strict=True)):
                check_range(f"{self.file}: picture {index}, level_{level}", codes, size)
        return found


def _check(file: Path, spec: CacheSpec, found: dict[str, str]) -> None:
    """ConfigError where the file is not what the run wants: expected, got, and what to do."""
    wanted = spec.metadata()
    wrong = [name for name in ("format", "data", "vae", "resolution", "pictures") if found.get(name) != wanted[name]]
    if spec.content == "latents" and found.get("content") != "latents":
        wrong.append("content")  # soft labels need what codes alone do not tell
    if spec.mirrored and found.get("mirrored") != "true":
        wrong.append("mirrored")
    if wrong:
        expected = ", ".join(f"{name} {wanted[name]}" for name in wrong)
        got = ", ".join(f"{name} {found.get(name, 'unknown')}" for name in wrong)
        raise ConfigError(
            f"{file}: not this run's code cache: expected {expected}; got {got}."
            " Remove it, or name another file, to have one made"
        )


def vae_hash(vae: HQVAE) -> str:
    """16 hexadecimal digits, equal for equal weights of what codes depend on: all but the decoder and EMA sums."""
    digest = hashlib.sha256()
    for name, value in vae.state_dict().items():
        if not name.startswith(("decoder.", "post_quant_conv.")) and not name.endswith((".cluster_size", "_sum")):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def picture_latents(vae: HQVAE, images: Tensor) -> Tensor:
    """The latents of pictures [B, 3, R, R]: in fp32 whatever the run's precision, and without gradients."""
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return vae.latents(images)


def join_codes(codes: Sequence[Tensor]) -> Tensor:
    """Codes [B, h, w] of all levels as one [B, S], top level first, each row by row."""
    return torch.cat([level.flatten(1) for level in codes], dim=1)


def split_codes(joined_BS: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """The inverse of :func:`join_codes`, int64."""
    parts = joined_BS.long().split([side * side for side in sides], dim=1)
    return [part.view(-1, side, side) for part, side in zip(parts, sides, strict=True)]

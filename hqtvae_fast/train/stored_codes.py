"""Codes that ``hqtvae encode --shards`` wrote, in the pictures' place: as a run's data, or as the cache of its data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hqtvae_fast.config import ConfigError, VAEConfig
from hqtvae_fast.model import HQVAE
from hqtvae_fast.train.code_cache import Content, join_codes, vae_hash
from hqtvae_fast.train.data import CodedPictures, Selection, Source, UnreadableError, open_source


class StoredCodes:
    """:class:`hqtvae_fast.train.data.Stored` of shards of codes: ``places[index]`` is where picture ``index`` of the
    run's source is among ``pictures``, -1 where it could not be read when it was to be encoded."""

    content: Content = "codes"

    def __init__(self, pictures: CodedPictures, places: Sequence[int] | Tensor, config: VAEConfig) -> None:
        self.pictures, self.config = pictures, config
        self.places = torch.as_tensor(places, dtype=torch.int64, device="cpu")

    @property
    def broken(self) -> int:
        """How many pictures have no codes."""
        return int((self.places < 0).sum())

    def read(self, index: int, mirrored: bool) -> Tensor:
        """Codes int64 [S] of all levels. UnreadableError where there are none, ValueError where they are not the
        VAE's."""
        place = int(self.places[index])
        if place < 0:
            raise UnreadableError("not readable when its codes were made")
        try:
            levels = self.pictures.codes(place, self.config.level_sides, self.config.codebook_sizes)
        except OSError as error:
            raise UnreadableError(f"{self.pictures.key(place)}: {error}") from error
        return join_codes([level[None] for level in levels])[0]


def codes_as_data(source: Source, vae: HQVAE, *, soft_labels: bool, mirrored: bool) -> StoredCodes | None:
    """What a run reads in the place of pixels if its data are shards of codes; None if they are pictures."""
    pictures = source.source if isinstance(source, Selection) else source
    if not isinstance(pictures, CodedPictures):
        return None
    check_vae(pictures, vae)
    _check_wishes(pictures.name, soft_labels, mirrored)
    if missing := pictures.missing():
        warnings.warn(f"{pictures.name}: {len(missing)} shards are not there (yet): {missing[0]}, ...", stacklevel=2)
    places = source.indices if isinstance(source, Selection) else range(len(pictures))
    return StoredCodes(pictures, torch.as_tensor(places), vae.config)


def codes_as_cache(folder: Path, source: Source, vae: HQVAE, *, soft_labels: bool, mirrored: bool) -> StoredCodes:
    """Shards in ``folder`` as the code cache of a run's pictures. ConfigError if they are of another VAE or of other
    pictures, if some are missing, or if the run needs more of a picture than its codes."""
    try:
        pictures = open_source(folder, codes=True)
    except ValueError as error:
        raise ConfigError(f"code_cache: expected a file, or a folder of shards of codes; got {error}") from error
    if not isinstance(pictures, CodedPictures):
        raise ConfigError(f"code_cache: expected a file, or a folder of shards of codes; got pictures in {folder}")
    check_vae(pictures, vae)
    _check_wishes(pictures.name, soft_labels, mirrored)
    whole = source.source if isinstance(source, Selection) else source
    wanted, found = whole.fingerprint(), pictures.spec.get("data")
    if found != wanted:
        raise ConfigError(
            f"{folder}: expected codes of this run's data, {wanted}; got those of other pictures, {found}"
        )
    if missing := pictures.missing():
        raise ConfigError(f"{folder}: expected all shards of codes; {len(missing)} are missing, {missing[0]} the first")
    if len(pictures) and not 0 <= pictures.indices.min() <= pictures.indices.max() < len(whole):
        raise ConfigError(
            f"{folder}: expected codes named by their pictures' places, 0 to {len(whole) - 1}; got others"
        )
    places = torch.full((len(whole),), -1, dtype=torch.int64, device="cpu")
    places[torch.from_numpy(pictures.indices)] = torch.arange(len(pictures), dtype=torch.int64, device="cpu")
    return StoredCodes(pictures, places[source.indices] if isinstance(source, Selection) else places, vae.config)


def check_vae(pictures: CodedPictures, vae: HQVAE) -> None:
    """ConfigError if another VAE made the codes, as far as they tell."""
    wanted, found = vae_hash(vae), pictures.spec.get("vae")
    if found is not None and found != wanted:
        raise ConfigError(f"{pictures.name}: expected codes of this HQ-VAE, {wanted}; got another one's, {found}")


def _check_wishes(name: str, soft_labels: bool, mirrored: bool) -> None:
    """Codes alone tell no distances to other codes, and nothing of the mirrored picture."""
    if soft_labels:
        raise ConfigError(f"soft_labels: expected 0 with codes as data, which tell no distances; got codes in {name}")
    if mirrored:
        raise ConfigError(f"flip: expected false with codes as data, of pictures as they are; got codes in {name}")

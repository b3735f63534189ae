"""Codes that ``hqtvae encode --shards`` wrote, in the pictures' place: as a run's data, as its held-out pictures, or as
the cache of its data."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.config import ConfigError, VAEConfig
from hqtvae_fast.model import HQVAE
from hqtvae_fast.train.codes.cache import join_codes, vae_hash
from hqtvae_fast.train.config import Stage2Run
from hqtvae_fast.train.data import (
    CodedPictures,
    Content,
    Selection,
    Source,
    Stored,
    UnreadableError,
    class_names,
    open_source,
    whole_of,
)
from hqtvae_fast.train.data.coded import CHECKPOINT


class StoredCodes:
    """:class:`hqtvae_fast.train.data.Stored` of shards of codes: ``places[index]`` is where picture ``index`` of a
    source is among ``pictures``, -1 where it could not be read when it was to be encoded."""

    content: Content = "codes"

    def __init__(self, pictures: CodedPictures, places: Tensor, config: VAEConfig) -> None:
        self.pictures, self.places, self.config = pictures, places, config

    @property
    def broken(self) -> int:
        """How many pictures have no codes."""
        return int((self.places < 0).sum())

    def read(self, index: int, mirrored: bool) -> Tensor:
        """Codes int64 [S] of all levels. UnreadableError where there are none, ValueError where they are not the
        VAE's."""
        if self.places[index] < 0:
            raise UnreadableError("not readable when its codes were made")
        try:
            return join_codes(self.levels([index]))[0]
        except OSError as error:
            raise UnreadableError(f"{self.pictures.key(int(self.places[index]))}: {error}") from error

    def levels(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Codes int64 [B, h, w] a level, top first, of pictures that have them. OSError where they cannot be read."""
        sides, sizes = self.config.level_sides, self.config.codebook_sizes
        found = [self.pictures.codes(int(self.places[index]), sides, sizes) for index in indices]
        return tuple(map(torch.stack, zip(*found, strict=True)))


class StoredPart:
    """What is stored of some pictures: those at ``indices`` [N] of the whole."""

    def __init__(self, whole: Stored, indices: Tensor) -> None:
        self.whole, self.indices = whole, indices

    @property
    def content(self) -> Content:
        return self.whole.content

    def read(self, index: int, mirrored: bool) -> Tensor:
        return self.whole.read(int(self.indices[index]), mirrored)


def part_of(stored: Stored, part: Source, whole: Source) -> Stored:
    """What is stored of ``whole``, as of a part of it."""
    return stored if part is whole else StoredPart(stored, indices_in(part, whole))


def indices_in(part: Source, whole: Source) -> Tensor:
    """Where the pictures of a selection, or of a selection of a selection, are in the whole: int64 [N]."""
    if part is whole:
        return torch.arange(len(whole), dtype=torch.int64, device="cpu")
    if not isinstance(part, Selection):
        raise ValueError(f"expected a part of the pictures that are stored; got another source, {type(part).__name__}")
    return indices_in(part.source, whole)[torch.from_numpy(part.indices)]


# ------------------------------------------------------------------------------------------------- what codes decide


def settle(run: Stage2Run, source: Source) -> tuple[Stage2Run, list[str]]:
    """The run with what it leaves open decided by its data, where these, or its code cache, are shards of codes: the
    HQ-VAE that made them, no soft labels, no mirrored pictures; and a line for each of these. They count as given:
    what is picked for a run to fit does not change them.

    ConfigError where nothing names an HQ-VAE, where what names it has gone, or on soft labels that were asked for.
    """
    changes: dict[str, Any] = {}
    if not (run.vae or run.prior or run.init):
        changes["vae"] = _maker(whole_of(source))
    if codes := _shards(run, source):
        _check_wishes(codes, bool(run.soft_labels), mirrored=False)
        changes["flip"] = False
        if run.soft_labels is None:
            changes["soft_labels"] = 0.0
    told = [f"vae: {changes['vae']}, which made the codes"] if "vae" in changes else []
    off = ["flip"] * (run.flip and "flip" in changes) + ["soft_labels"] * ("soft_labels" in changes)
    told += [f"{name}: off, as the data are codes" for name in off]
    return dataclasses.replace(run, **changes, given=tuple(sorted({*run.given, *changes}))), told


def _shards(run: Stage2Run, source: Source) -> str:
    """What messages call the shards of codes that a run reads; empty if it reads none."""
    data, cache = whole_of(source), run.code_cache or ""
    if isinstance(data, CodedPictures):
        return data.name
    return cache if cache and Path(cache).is_dir() else ""


def _maker(data: Source) -> str:
    """The checkpoint that made the codes."""
    made_by = data.spec.get(CHECKPOINT) if isinstance(data, CodedPictures) else None
    if not isinstance(data, CodedPictures) or not isinstance(made_by, str):
        raise ConfigError("vae: expected the checkpoint directory of a trained stage 1; got none")
    if Path(made_by).is_absolute() and not Path(made_by).is_dir():
        raise ConfigError(
            f"vae: expected one, or {made_by}, which made the codes in {data.name}, where it was; got no such directory"
        )
    return made_by


# ---------------------------------------------------------------------------------------------------------------- open


def codes_as_data(source: Source, vae: HQVAE, *, soft_labels: bool, mirrored: bool) -> StoredCodes | None:
    """What a run reads in the place of pixels if its data are shards of codes; None if they are pictures."""
    pictures = whole_of(source)
    if not isinstance(pictures, CodedPictures):
        return None
    _check_wishes(pictures.name, soft_labels, mirrored)
    check_vae(pictures, vae)
    if missing := pictures.missing():
        warnings.warn(f"{pictures.name}: {len(missing)} shards are not there (yet): {missing[0]}, ...", stacklevel=2)
    return StoredCodes(pictures, indices_in(source, pictures), vae.config)


def codes_as_held_out(source: Source, training: Source, vae: HQVAE, *, soft_labels: bool) -> StoredCodes | None:
    """The same of held-out pictures. ConfigError where their losses would not be those of training, or their labels
    number other classes than the training's do."""
    pictures = whole_of(source)
    if not isinstance(pictures, CodedPictures):
        return None
    if soft_labels:
        raise ConfigError(f"validation: expected pictures, or soft_labels 0; got codes in {pictures.name}")
    own, wanted = class_names(pictures), class_names(training)
    if own is not None and wanted is not None and own != wanted:
        raise ConfigError(
            f"validation: expected codes labelled as the data ({', '.join(wanted)}); got {', '.join(own)} in"
            f" {pictures.name}"
        )
    return codes_as_data(source, vae, soft_labels=False, mirrored=False)


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
    whole = whole_of(source)
    return StoredCodes(pictures, places_of(pictures, whole)[indices_in(source, whole)], vae.config)


def places_of(pictures: CodedPictures, whole: Source) -> Tensor:
    """Where each picture of the source that was encoded is among its codes: int64 [N], -1 for one without codes, which
    could not be read then. ConfigError if they are of another source, or if shards are missing."""
    wanted, found = whole.fingerprint(), pictures.spec.get("data")
    if found != wanted:
        raise ConfigError(
            f"{pictures.name}: expected codes of these pictures, {wanted}; got those of other pictures, {found}"
        )
    if missing := pictures.missing():
        raise ConfigError(
            f"{pictures.name}: expected all shards of codes; {len(missing)} are missing, {missing[0]} the first"
        )
    if len(pictures) and not 0 <= pictures.indices.min() <= pictures.indices.max() < len(whole):
        raise ConfigError(
            f"{pictures.name}: expected codes named by their pictures' places, 0 to {len(whole) - 1}; got others"
        )
    places = torch.full((len(whole),), -1, dtype=torch.int64, device="cpu")
    places[torch.from_numpy(pictures.indices)] = torch.arange(len(pictures), dtype=torch.int64, device="cpu")
    return places


def check_vae(pictures: CodedPictures, vae: HQVAE) -> None:
    """ConfigError if another VAE made the codes, as far as they tell."""
    wanted, found, made_by = vae_hash(vae), pictures.spec.get("vae"), pictures.spec.get(CHECKPOINT)
    if found is not None and found != wanted:
        hint = f", made by {made_by} as it was then" if made_by else ""
        raise ConfigError(f"{pictures.name}: expected codes of this HQ-VAE, {wanted}; got another one's, {found}{hint}")


def _check_wishes(name: str, soft_labels: bool, mirrored: bool) -> None:
    """Codes alone tell no distances to other codes, and nothing of the mirrored picture."""
    if soft_labels:
        raise ConfigError(f"soft_labels: expected 0 with codes as data, which tell no distances; got codes in {name}")
    if mirrored:
        raise ConfigError(f"flip: expected false with codes as data, of pictures as they are; got codes in {name}")

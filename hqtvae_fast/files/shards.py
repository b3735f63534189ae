"""Shards that are whole or absent, in folders that say what they hold: what jobs need that may stop anywhere.

A shard is a tar. It takes its name when it is whole and on the disk, so those that have theirs are done, and a job that
is started again makes the others.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hqtvae_fast.config import ConfigError
from hqtvae_fast.files import read_text, write_file


def keep_spec(
    folder: Path,
    name: str,
    spec: dict[str, Any],
    what: str,
    extends: Callable[[dict[str, Any]], bool] = lambda found: False,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write what a folder is to hold into its file ``name``, or compare it with what is written there.

    ``spec`` has a field ``format``. ConfigError if the folder holds something else, saying in which fields; ``what``:
    the shards' contents, for that message. ``extends``: whether what is there is a part of what is wanted; then the
    folder is to hold all of it from now on. ``notes``: what is written beside it and may change, such as a place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if not file.exists() and any(folder.glob("*.tar")):
        raise ConfigError(f"{folder}: expected an empty folder or one with {name}; it holds other shards")
    written = {**spec, **(notes or {})}
    if not file.exists() or not _holds(file, spec, written, what, extends):
        write_file(file, json.dumps(written, indent=1).encode() + b"\n")


def _holds(
    file: Path, spec: dict[str, Any], written: dict[str, Any], what: str, extends: Callable[[dict[str, Any]], bool]
) -> bool:
    """Whether all that is to be ``written`` is there; ConfigError if not even a part of ``spec`` is."""
    try:
        found = json.loads(read_text(file))
    except ValueError as error:
        raise ConfigError(f"{file}: not what was written there ({error})") from error
    if not isinstance(found, dict) or found.get("format") != spec["format"]:
        raise ConfigError(f"{file}: expected {spec['format']!r}")
    wanted = json.loads(json.dumps(written))  # tuples are lists there
    differing = [name for name in spec if found.get(name) != wanted[name]]
    if differing and not extends(found):
        fields = "; ".join(f"{name}: {found.get(name)} there, {spec[name]} wanted" for name in differing)
        raise ConfigError(f"{file.parent}: holds {what} made from something else ({fields})")
    return not differing and all(found.get(name) == value for name, value in wanted.items())


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without a time or an owner: the same contents make the same file."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))

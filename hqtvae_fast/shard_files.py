"""Shards that are whole or absent, in folders that say what they hold: what jobs need that may stop anywhere.

A shard is a tar. It takes its name when it is whole and on the disk, so those that have theirs are done, and a job that
is started again makes the others.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from hqtvae_fast.config import ConfigError
from hqtvae_fast.files import read_text, write_file


def keep_spec(folder: Path, name: str, spec: dict[str, Any], what: str) -> None:
    """Write what a folder is to hold into its file ``name``, or compare it with what is written there.

    ``spec`` has a field ``format``. ConfigError if the folder holds something else, saying in which fields; ``what``:
    the shards' contents, for that message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if file.exists():
        _check_spec(file, spec, what)
    elif any(folder.glob("*.tar")):
        raise ConfigError(f"{folder}: expected an empty folder or one with {name}; it holds other shards")
    else:
        write_file(file, json.dumps(spec, indent=1).encode() + b"\n")


def _check_spec(file: Path, spec: dict[str, Any], what: str) -> None:
    try:
        found = json.loads(read_text(file))
    except ValueError as error:
        raise ConfigError(f"{file}: not what was written there ({error})") from error
    if not isinstance(found, dict) or found.get("format") != spec["format"]:
        raise ConfigError(f"{file}: expected {spec['format']!r}")
    if differing := [name for name, value in spec.items() if found.get(name) != value]:
        fields = "; ".join(f"{name}: {found.get(name)} there, {spec[name]} wanted" for name in differing)
        raise ConfigError(f"{file.parent}: holds {what} made from something else ({fields})")


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without a time or an owner: the same contents make the same file."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))

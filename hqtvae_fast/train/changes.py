"""What of a run may be another when it goes on. Which fields may is said beside them, in :mod:`.config`.

Some need no word, as what they lead to is looked at itself: the pictures (the run's position knows them) and the
weights of stage 1 (each checkpoint of stage 2 holds them).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hqtvae_fast.fields import ConfigError
from hqtvae_fast.files import parse_json, read_text, write_file
from hqtvae_fast.run_folder import CHECKPOINTS, RUN_FILE, newest_first
from hqtvae_fast.train.config import RunConfig, described, may_change, passes

STAGE = "stage"


def earlier_run(folder: Path) -> dict[str, Any]:
    """What the folder's ``run.json`` says of the run whose checkpoints are there, without what was meant for one of its
    processes; {} where there is nothing to go on from. ConfigError on a damaged file."""
    file = folder / RUN_FILE
    if not file.is_file() or not newest_first(folder / CHECKPOINTS):
        return {}
    found = parse_json(read_text(file), file)
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: expected the fields of a run; got {type(found).__name__}")
    return {name: value for name, value in found.items() if not passes(name)}


def remembered(run: RunConfig, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in ``earlier`` and may stand in ``run``."""
    known = {f.name for f in fields(run)}
    return {name: value for name, value in earlier.items() if value is not None and name in known}


def write_run(folder: Path, run: RunConfig) -> None:
    write_file(folder / RUN_FILE, json.dumps({STAGE: run.stage, **described(run)}, indent=2).encode() + b"\n")


def changes(run: RunConfig, earlier: Mapping[str, Any]) -> list[str]:
    """Fields that are others than ``earlier``, in words; ConfigError on one that may not be. A field that an older
    version did not know has not changed."""
    now = json.loads(json.dumps({STAGE: run.stage, **described(run)}))
    told = []
    for name, was in earlier.items():
        if name in now and now[name] != was and not passes(name):
            path, value, before = _difference(name, now[name], was)
            if not may_change(type(run), name):
                raise ConfigError(
                    f"{path}: expected {_shown(before)}, as this run was started with; got {_shown(value)}:"
                    " leave it as it was, or give another --out"
                )
            told.append(f"{path}: {_shown(value)}, was {_shown(before)}")
    return told


def _difference(path: str, now: Any, was: Any) -> tuple[str, Any, Any]:
    """The first entry of nested mappings that differs."""
    if isinstance(now, dict) and isinstance(was, dict):
        for name in {**was, **now}:
            if now.get(name) != was.get(name):
                return _difference(f"{path}.{name}", now.get(name), was.get(name))
    return path, now, was


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "", {}) else str(value)

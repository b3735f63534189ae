"""Named training runs: the paper's configurations as YAML files, ``stage1/NAME.yaml`` and ``stage2/NAME.yaml``.

A file holds fields of :class:`hqtvae_fast.train.config.Stage1Run` or ``Stage2Run``, without what only its user knows:
data, out, vae. Its first line is a comment, ``# WHERE: what it is``, with the paper's table and row as WHERE.
``sizes/NAME.yaml`` holds such fields of both stages, of models smaller than the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hqtvae_fast.config import ConfigError
from hqtvae_fast.files import read_text

STAGES = ("stage1", "stage2")
SIZES = "sizes"


@dataclass(frozen=True)
class Preset:
    """``source``: where the paper or the released configurations have it; ``fields``: as in a run's YAML file."""

    stage: str
    name: str
    source: str
    description: str
    fields: dict[str, Any]


def preset_names(stage: str) -> tuple[str, ...]:
    """Names of a stage's presets, ``stage1`` or ``stage2``, in alphabetical order."""
    return tuple(sorted(path.stem for path in _folder(stage).glob("*.yaml")))


def load_preset(stage: str, name: str) -> Preset:
    """The preset of that name; ConfigError lists the names when there is none."""
    if name not in preset_names(stage):
        raise ConfigError(f"preset: expected one of {', '.join(preset_names(stage))} for {stage}; got {name!r}")
    file = _folder(stage) / f"{name}.yaml"
    source, _, description = file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").partition(": ")
    return Preset(stage, name, source, description, read_fields(file))


def load_size(name: str, stage: str) -> dict[str, Any]:
    """Fields of a stage's run in one of the sizes."""
    return read_fields(_folder(SIZES) / f"{name}.yaml")[stage]


def read_fields(file: Path) -> dict[str, Any]:
    """What a run's YAML file says; a ValueError names the file if it cannot be read or is no mapping."""
    try:
        data = yaml.safe_load(read_text(file))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if data is None:  # an empty file
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: expected fields and values; got {type(data).__name__}")
    return data


def _folder(stage: str) -> Path:
    # A package in a zip file has no such folder; nor could torch be imported from there.
    return Path(str(files(__name__))) / stage

"""Reading weights that the user has on disk, with errors that name the file and the tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fill(module: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Give a module its tensors by name; others in ``state`` are left alone. ValueError if one lacks or misfits."""
    own = module.state_dict()
    for name, value in own.items():
        found = state.get(name)
        if name.endswith("num_batches_tracked"):  # a counter of training
            continue
        if found is None or found.shape != value.shape:
            got = "no such tensor" if found is None else str(list(found.shape))
            raise ValueError(f"{where}: {name}: expected {list(value.shape)}; got {got}")
        value.copy_(found)

"""Reading weights that the user has on disk, with errors that name the file and the tensor."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict, from safetensors or from a pickle of tensors alone. ValueError if the file is anything else."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: damaged, or holds other things than tensors ({reason})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected names and tensors; got {type(state).__name__}")
    return state


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

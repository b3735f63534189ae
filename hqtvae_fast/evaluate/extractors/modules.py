"""Networks that a user brings: saved by torch.export or as TorchScript, or made by a function of theirs."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from hqtvae_fast.evaluate.extractors.weights import file_hash
from hqtvae_fast.files import first_line

EXPORTED, SCRIPTED = ".pt2", (".pt", ".torchscript")
SAVED = (EXPORTED, *SCRIPTED)


def load_module(spec: str, device: str | torch.device = "cpu") -> nn.Module:
    """A user's own network, on a device: saved, or what ``package.module:factory`` makes. ValueError otherwise."""
    if spec.endswith(EXPORTED):
        return _load_exported(Path(spec), device)
    if spec.endswith(SCRIPTED):
        return _load_script(Path(spec)).to(device)
    if ":" in spec:
        return _load_python(spec).to(device)
    raise ValueError(f"expected a file (.pt2, .pt) or package.module:factory; got {spec!r}")


def name_module(spec: str) -> str:
    """What to call it: a file's name and the beginning of its hash, or the factory."""
    path = Path(spec)
    return f"{path.name} {file_hash(path)[:8]}" if spec.endswith(SAVED) else spec


def _load_exported(path: Path, device: str | torch.device) -> nn.Module:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        program = torch.export.load(path)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: expected a program saved by torch.export; {first_line(error)}") from error
    return move_to_device_pass(program, str(device)).module()


def _load_script(path: Path) -> nn.Module:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the format; what users have is often still in it
            return torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        raise ValueError(f"{path}: expected a TorchScript module; {first_line(error)}") from error


def _load_python(spec: str) -> nn.Module:
    module_name, _, name = spec.partition(":")
    try:
        factory = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{spec}: expected package.module:factory; {error}") from error
    made = factory()
    if not isinstance(made, nn.Module):
        raise ValueError(f"{spec}: expected a function that returns a torch module; got {type(made).__name__}")
    return made.eval()

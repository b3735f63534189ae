"""Files of tensors that others wrote: state dicts read, and what a file is that holds none.

Nothing read from disk is executed: pickles are opened with ``weights_only=True``. Not even NumPy's scalars are let in,
which many training scripts leave beside the weights: unpickling one sets a dtype's flags from the file, and those
decide whether bytes of the file are taken for addresses.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hqtvae_fast.config import CheckpointError as CheckpointError
from hqtvae_fast.files import first_line
from hqtvae_fast.files.kinds import refuse_others

StateDict = dict[str, Tensor]

SAFETENSORS = ".safetensors"
# Where training scripts put a model's weights in what they save, and its running average.
_WEIGHTS = ("state_dict", "model_state_dict", "model", "module", "weights")
_AVERAGES = ("ema", "ema_state_dict", "ema_model", "model_ema", "state_dict_ema")
_DEEPEST = 4  # such mappings in one another


def read_state(file: Path) -> StateDict:
    """A model's tensors by name, from safetensors or from a pickle of tensors, on the CPU.

    Weights are found where training scripts put them (``state_dict``, ``model`` and the like); of plain weights and
    their running average the plain ones are taken, with a warning that says so. CheckpointError on any other file.
    """
    if file.is_dir():
        raise CheckpointError(f"{file}: expected a file of tensors; got a directory")
    refuse_others(file, "a file of tensors")
    if file.suffix == SAFETENSORS or _begins_as_safetensors(file):
        return _read_safetensors(file)
    state = _find_weights(file, _read_pickle(file))
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: {key}: expected a tensor; got {type(value).__name__}")
    return state


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor an infinity. By ``aminmax``, which passes NaN on and writes nothing: on a CPU 20
    times as fast as ``isfinite().all()``."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    if tensor.itemsize == 1:  # torch has no minimum of fp8
        tensor = tensor.float()
    return all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))


def _begins_as_safetensors(file: Path) -> bool:
    """Whether a header in JSON follows its length in eight bytes."""
    with file.open("rb") as opened:
        head = opened.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= file.stat().st_size


def _read_safetensors(file: Path) -> StateDict:
    try:
        return safetensors.torch.load_file(file)
    except Exception as error:  # its own error, and torch's on a header that says what cannot be
        raise CheckpointError(f"{file}: {_damage(file, 'safetensors')} ({first_line(error)})") from error


def _read_pickle(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's protocol, where the error that follows says more
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: {_refusal(file, str(error))}") from error
    except Exception as error:  # damaged bytes make unpickling, zip and torch raise whatever comes
        raise CheckpointError(f"{file}: {_damage(file, 'torch')} ({first_line(error)})") from error


def _damage(file: Path, kind: str) -> str:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                return f"expected a {kind} file; got a zip archive: unpack it"
    return f"truncated at {file.stat().st_size:,} bytes, or not a {kind} file"


def _refusal(file: Path, error: str) -> str:
    """Of a pickle that asks for more than tensors, with a line of Python, as errors are lines, that takes them out."""
    wanted, taken = re.search(r"GLOBAL ([\w.]*\w)", error), file.with_name(f"{file.stem}.tensors{file.suffix}")
    if wanted is None:
        with file.open("rb") as opened:
            first = opened.read(1)
            opened.seek(-1, os.SEEK_END)
            whole_pickle = (first, opened.read(1)) == (b"\x80", b".")
        if not whole_pickle:
            return _damage(file, "torch")
        return "refused, a checkpoint may hold tensors only; this one holds other Python objects"
    return (
        f"refused, a checkpoint may hold tensors only; this one asks to run {wanted.group(1)}. Where you trust who made"
        f" it, take the tensors out in Python, and put {taken.name} in its place: import torch;"
        f' data = torch.load(r"{file}", map_location="cpu", weights_only=False);'
        f' torch.save({{key: data[key] for key in ("state_dict", "model", "ema") if key in data}} or data, r"{taken}")'
    )


def _find_weights(file: Path, data: Any) -> Any:
    """The mapping of names to tensors in what a training script saved."""
    for _ in range(_DEEPEST):
        if not isinstance(data, dict):
            raise CheckpointError(
                f"{file}: expected a state_dict (a mapping of names to tensors); got {type(data).__name__}"
            )
        found = [[name for name in names if isinstance(data.get(name), dict)] for names in (_WEIGHTS, _AVERAGES)]
        if not any(found):
            break
        (plain, averages), chosen = found, next(name for names in found for name in names)
        if averages:
            what = "weights" if plain else "EMA copy"
            beside = f" are taken, not the EMA copy under {averages[0]!r}" if plain else " is taken: it holds no other"
            warnings.warn(f"{file}: the {what} under {chosen!r}{beside}", stacklevel=2)
        data = data[chosen]
    return data

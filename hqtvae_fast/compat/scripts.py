"""Runs a script of the released repository as it is."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from hqtvae_fast.compat.hooks import PACKAGE, install
from hqtvae_fast.compat.stand_ins import ROOTS
from hqtvae_fast.compat.without_cuda import stay_on_cpu
from hqtvae_fast.progress import say

OURS = (f"{os.sep}hqtvae_fast{os.sep}compat{os.sep}", "runpy>", f"{os.sep}runpy.py")
"""What the path of a file of ours, and of Python's that run a script, has in it."""


def prepare(dtype: Any = None, *, accelerated: bool = True) -> list[tuple[str, str]]:
    """See to all that follows in this process; what is replaced, and by what."""
    install(dtype, accelerated=accelerated)
    torch.load = _tensors_only(torch.load)
    ours = [
        (f"{PACKAGE}.models.ImageGPT2", "its sampling, encoding, decoding and forward run on the engine, batched"),
        (f"{PACKAGE}.utils.sampling", "sampling_ihqgpt and sampling_hqtransformer on such a model, batch 1 too"),
    ]
    told = [
        *(ours if accelerated else []),
        *((name, f"{by}, if it is not there or fails") for name, by in ROOTS.items()),
        ("dataclasses.dataclass", "defaults may be dataclasses' instances, as before Python 3.11"),
        ("torch.load", "tensors and plain Python values only, unless the script says weights_only=False"),
    ]
    if "fork" in multiprocessing.get_all_start_methods() and sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)  # others would run an unguarded script again
        told.append(("multiprocessing", "workers are forked, as before Python 3.14"))
    if not torch.cuda.is_available():
        stay_on_cpu()
        told.append(("torch.cuda, .cuda(), .to('cuda')", "stay on the CPU, as no GPU is here; events read its clock"))
    return told


def run(target: Sequence[str], dtype: Any = None, *, explain: bool = False, accelerated: bool = True) -> int:
    """``target``: a script and its arguments, or -m, a module and its arguments. The exit status."""
    told = prepare(dtype, accelerated=accelerated)
    if explain:
        width = max(len(what) for what, _ in told)
        for what, by in told:
            say(f"  {what:{width}}  {by}")
    else:
        names = ", ".join(what for what, _ in told)
        say(f"hqtvae_fast stands in for: {names} (--explain says how)")
    if not target:
        return 0
    try:
        _run(list(target))
    except Exception as error:
        sys.excepthook(type(error), error.with_traceback(_own(error.__traceback__)), error.__traceback__)
        return 1
    return 0


def _run(target: list[str]) -> None:
    if target[0] == "-m":
        sys.argv = target[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(target[1], run_name="__main__", alter_sys=True)
        return
    script = Path(target[0])
    sys.argv = target
    sys.path.insert(
        0, str(script.absolute().parent)
    )  # a folder's too, such as measure_throughput: its package is there
    runpy.run_path(str(script), run_name="__main__")


def _own(trace: TracebackType | None) -> TracebackType | None:
    """From the script's first line on."""
    at = trace
    while at is not None and any(part in at.tb_frame.f_code.co_filename for part in OURS):
        at = at.tb_next
    return at


def _tensors_only(load: Any) -> Any:
    @wraps(load)
    def read(*arguments: Any, **options: Any) -> Any:
        if options.get("weights_only") is None:
            options["weights_only"] = True
        if not torch.cuda.is_available() and str(options.get("map_location", "")).startswith("cuda"):
            options["map_location"] = "cpu"
        return load(*arguments, **options)

    return read

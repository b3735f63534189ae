"""Which plan a pipeline goes by: a tuned one whose facts hold here, else the default, verified on a GPU; or the one
that was asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from hqtvae_fast.config import HQTVAEConfig, to_dict
from hqtvae_fast.engine.options import EngineOptions, Precision
from hqtvae_fast.files import first_line
from hqtvae_fast.hardware import cpu_features, device_name
from hqtvae_fast.plan import Plan
from hqtvae_fast.plan_file import (
    SHIPPED,
    Facts,
    PlanError,
    PlanFile,
    facts_id,
    plans_folder,
    verified_path,
)
from hqtvae_fast.progress import say

Asked = Literal["auto", "default", "library", "reference"] | str | os.PathLike[str] | Plan
PLANS = {
    "default": Plan("default"),
    "library": Plan("library"),
    "reference": Plan("reference", engine={1: "uncaptured, modules"}),
}
NAMES = ("auto", *PLANS)
RENEWED = frozenset({"driver", "cuda", "cudnn", "torch", "triton", "sources"})
"""Facts that an update changes under a plan that was good."""
PACKAGE = Path(__file__).parent
DRIVER = Path("/proc/driver/nvidia/version")


class Planner:
    """``asked``: as ``HQTVAEPipeline.from_pretrained`` takes it, ``accept`` likewise. PlanError on a name that is
    unknown, and on a file that cannot be read."""

    def __init__(self, asked: Asked = "auto", accept: Sequence[str] = ()) -> None:
        self.asked, self.accept = asked, accept
        self.file: PlanFile | None = None
        if not isinstance(asked, Plan) and asked not in NAMES:
            self.file = _read_asked(Path(asked))
        if accept and self.file is None:
            raise PlanError(f"accept: expected a plan's file, whose facts may differ; got plan {asked!r}")

    @property
    def automatic(self) -> bool:
        return self.asked == "auto"

    def find(self, facts: Callable[[], Facts], device: torch.device, verify: Callable[[], Plan]) -> Plan:
        """The plan; ``verify`` is called where the default one is needed on a GPU that has not verified it yet, and
        gives it. PlanError where the file that was asked for does not hold under ``facts``."""
        if isinstance(self.asked, Plan):
            return self.asked
        if self.file is not None:
            self.file.check(facts(), self.accept, os.fspath(self.asked))
            return _told(self.file, os.fspath(self.asked))
        if self.asked in ("library", "reference"):
            return PLANS[self.asked]
        return (self.automatic and _tuned(facts)) or default_plan(facts, device, verify)


def _read_asked(path: Path) -> PlanFile:
    if path.is_file():
        return PlanFile.read(path)
    raise PlanError(f"plan: expected {', '.join(NAMES)}, or a plan's file; got {str(path)!r}, which is no file")


def sound(file: PlanFile) -> Plan:
    """Its plan; PlanError where the engine's part is none."""
    try:
        for own in file.engine.values():
            EngineOptions.read(own.variant)
    except ValueError as error:
        raise PlanError(str(error)) from error
    return file.plan


def _told(file: PlanFile, name: str) -> Plan:
    """:func:`sound`; of kernels that it passes over for lack of time, a word."""
    plan = sound(file)
    if file.unreached:
        what = ", ".join(sorted(file.unreached))
        warnings.warn(
            f"{name}: tuning ended before it had verified {what}: other kernels compute in their place;"
            " `hqtvae tune` with a larger --budget verifies them",
            stacklevel=6,
        )
    return plan


def _tuned(facts: Callable[[], Facts]) -> Plan | None:
    """The tuned plan of this machine, or one that comes with the package; None without any that holds."""
    folders = [folder for folder in (plans_folder(), SHIPPED) if folder.is_dir()]
    if not folders:  # facts take a moment to gather
        return None
    found, name = facts(), f"{facts_id(facts())}.json"
    for file in (folder / name for folder in folders):
        try:
            plan_file = PlanFile.read(file)
            plan_file.check(found, name=file)
            return _told(plan_file, str(file))
        except FileNotFoundError:
            continue
        except (PlanError, OSError) as error:
            warnings.warn(f"{_naming(error, file)}: going by the default plan", stacklevel=5)
            return None
    _tell_of_outdated(found, folders[0])
    return None


def _naming(error: Exception, file: Path) -> str:
    text = first_line(error)
    return text if str(file) in text else f"{file}: {text}"


def _tell_of_outdated(facts: Facts, folder: Path) -> None:
    """Say so where a plan held here until something was updated."""
    for file in sorted(folder.glob("*.json")):
        try:
            old = PlanFile.read(file)
        except (PlanError, OSError):
            continue  # of other facts, so far as its name says
        lines = old.differences(facts)
        if old.kind == "tuned" and lines and {fact for fact, _ in lines} <= RENEWED:
            said = "; ".join(line for _, line in lines)
            warnings.warn(
                f"{file}: a plan for this model here, made under other facts: {said}: going by the default plan until"
                " `hqtvae tune` is run again",
                stacklevel=6,
            )
            return


# ------------------------------------------------------------------------------------------------------------- default


def default_plan(facts: Callable[[], Facts], device: torch.device, verify: Callable[[], Plan]) -> Plan:
    """Our default variants. On a GPU those that were verified on this machine, libraries for the rest: the first time
    ``verify`` finds out, and what it found is kept. Where it cannot, libraries alone."""
    if device.type != "cuda":
        return PLANS["default"]
    kept, file = kept_verification(facts()), verified_path(facts())
    if kept is not None and not kept.unreached:
        return kept.plan
    try:
        plan = verify()
    except (ImportError, OSError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        warnings.warn(
            f"our kernels cannot be verified on {device_name(device)} ({reason}): libraries alone compute",
            stacklevel=5,
        )
        return PLANS["library"]
    _tell_verified(plan, device)
    try:
        PlanFile.of(plan, facts()).write(file)
    except OSError as error:
        warnings.warn(f"{_naming(error, file)}: kernels will be verified again next time", stacklevel=5)
    return plan


def kept_verification(facts: Facts) -> PlanFile | None:
    """What was verified on this machine before, as far as it holds."""
    file = verified_path(facts)
    try:
        kept = PlanFile.read(file)
        kept.check(facts, name=file)
        return kept
    except (FileNotFoundError, NotADirectoryError):
        return None  # this machine has verified nothing yet
    except (PlanError, OSError) as error:
        warnings.warn(f"{_naming(error, file)}: verifying again", stacklevel=6)
    return None


def _tell_verified(plan: Plan, device: torch.device) -> None:
    for name, reason in plan.refused.items():
        warnings.warn(f"{name}: failed its verification on {device_name(device)}: {reason}", stacklevel=6)
    count = len(plan.verified or ())
    say(
        f"{count} of our kernels are verified on {device_name(device)}; `hqtvae tune CHECKPOINT` would also time their"
        " variants here, and keep the fastest"
    )


# --------------------------------------------------------------------------------------------------------------- facts


def facts_of(
    config: HQTVAEConfig, device: torch.device, precision: Precision, quantization: str | None
) -> dict[str, Any]:
    """What a plan for this model on this device holds under. Nothing of it moves by itself: no clock, no path."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    dtype = "tf32" if precision.tf32 else str(precision.dtype).removeprefix("torch.")
    return {
        "device": device_name(device),
        "multiprocessors": None if gpu is None else gpu.multi_processor_count,
        "memory": None if gpu is None else gpu.total_memory,
        "driver": None if gpu is None else _driver(),
        "cuda": None if gpu is None else torch.version.cuda,
        "cudnn": None if gpu is None else torch.backends.cudnn.version(),
        "torch": str(torch.__version__),
        "triton": None if gpu is None else _version("triton"),
        "processor": list(cpu_features()) if gpu is None else None,
        "threads": torch.get_num_threads() if gpu is None else None,
        "sources": sources(),
        "model": _shape(config),
        "dtype": dtype,
        "quantization": quantization,
    }


def _shape(config: HQTVAEConfig) -> str:
    shape = json.dumps(to_dict(dataclasses.replace(config, id2label=())), sort_keys=True, default=str)
    return hashlib.sha256(shape.encode()).hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Of the kernel, as Linux tells it."""
    try:
        found = re.search(r"\d+(\.\d+)+", DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return None
    return None if found is None else found[0]


@cache
def sources() -> str:
    """A hash of the operations' sources, Python's and those of csrc, as far as they are installed."""
    digest = hashlib.sha256()
    for folder, endings in ((PACKAGE / "ops", {".py"}), *((each, {".cu", ".cuh", ".cpp", ".h"}) for each in _csrc())):
        for file in sorted(path for path in folder.rglob("*") if path.suffix in endings):
            digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _csrc() -> list[Path]:
    return [folder for folder in (PACKAGE / "_cuda_sources", PACKAGE.parent / "csrc") if folder.is_dir()]

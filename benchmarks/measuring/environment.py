"""What a figure depends on besides the code: device, versions, revision, load and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import clocks
from hqtvae_fast.hardware import Device, cpu_features, cpu_name, device_name
from hqtvae_fast.ops.explain import peaks_of

HERE = Path(__file__).parents[1]
# What a figure may depend on, as their distributions are called; those that are not installed are left out.
PACKAGES = (
    *("hqtvae_fast", "numpy", "triton", "flash-attn", "xformers", "nvidia-ml-py", "cupy-cuda12x", "cupy-cuda13x"),
    *("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "cuvs-cu12", "cuvs-cu13"),
)


def describe(device: torch.device, program: str = "suites.generate") -> dict[str, Any]:
    """Facts about the machine, the software and the command that runs, for the JSON file and the table's caption.

    ``load_average`` is that of the minute before: on an idle machine it is near 0, and figures taken beside other
    work are provisional.
    """
    return {
        "device": device_name(device),
        "driver": clocks.driver(device),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_features": list(cpu_features()),
        "memory": _memory(device),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "versions": versions(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "git_revision": git_revision(),
        "clocks": clocks.describe(device),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command(program, sys.argv[1:]),
    }


def pick_device(name: str) -> torch.device:
    """The device of that name, made the current one; ValueError where there is none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu, cuda or cuda:N; got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"--device {name}: torch {torch.__version__} sees {count} CUDA devices here")
        torch.cuda.set_device(device.index or 0)  # which takes no device without a number
    return device


def command(program: str, arguments: list[str]) -> str:
    """What was typed: ``hqtvae bench ...``, or ``python -m benchmarks.PROGRAM ...``."""
    start = "hqtvae" if arguments[:1] == ["bench"] else f"python -m benchmarks.{program}"
    return f"{start} {shlex.join(arguments)}".rstrip()


def peaks_and_load(device: torch.device) -> tuple[Device, dict[str, Any]]:
    """The peaks that floors rest on, and, as a fact for the results file, how many CPUs other work kept busy while they
    were measured (None: not known): peaks of a busy machine are too low, and so floors too high."""
    with OtherWork() as others:
        peaks = peaks_of(device)
    return peaks, {"peaks_busy_elsewhere": others.cpus}


def _memory(device: torch.device) -> int:
    """Bytes of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The checkout's commit, with ``-dirty`` where files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_seconds_elsewhere() -> float | None:
    """CPU seconds that all processes but this one, and the hypervisor, have taken since boot; None outside Linux."""
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in line.split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


class OtherWork:
    """``with OtherWork() as others``: then ``others.cpus`` is how many CPUs other processes and the hypervisor kept
    busy meanwhile, on average; None where the system does not tell."""

    cpus: float | None = None

    def __enter__(self) -> OtherWork:
        self._started, self._before = time.perf_counter(), cpu_seconds_elsewhere()
        return self

    def __exit__(self, *exception: object) -> None:
        after, wall = cpu_seconds_elsewhere(), time.perf_counter() - self._started
        if self._before is not None and after is not None:
            self.cpus = max(0.0, after - self._before) / wall


class PeakMemory:
    """Peak memory, in bytes, since this was made.

    On a GPU: what torch had allocated at most, beyond what it held when this was made. On a CPU: the process's peak
    resident set, weights and their preparation and the interpreter included; it never falls, so only the first
    sampler that a process makes can be told apart from the rest.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._held = device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._held = torch.cuda.memory_allocated(device)

    def read(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._held
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB

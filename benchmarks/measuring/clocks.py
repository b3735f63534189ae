"""A GPU's clocks, power, energy, temperature and memory while something is timed, through nvidia-ml-py.

A figure taken while the clock fell is a figure of the cooling. :class:`Watch` samples in a thread of its own; the calls
release the interpreter's lock and take microseconds. On a CPU, or without nvidia-ml-py, there is nothing to watch.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

import torch

PERIOD = 0.05  # seconds between two samples
MOST_MOVED = 0.03  # the share by which the clock may move during one measurement
# Reasons that make a figure unfit. A power cap is not among them: at full load it is a GPU's normal state, and where it
# moves the clock, the clock says so.
SLOWED = ("HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown")
IDLE = "GpuIdle"
JUDGED = {"sm_mhz", "throttle_reasons"}  # what a sample must hold to speak for or against a figure
METERED = 0.5  # seconds: the energy counter moves in steps of tens of milliseconds, and shorter times are mostly that
BUSY_ELSEWHERE = 0.25  # CPUs that other processes may keep busy, on average


def library() -> ModuleType | None:
    """nvidia-ml-py, initialised; None where it, or the driver, is absent."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def handle_of(nvml: ModuleType, device: torch.device) -> Any:
    """The device's handle, by its UUID: CUDA_VISIBLE_DEVICES renumbers what torch sees, and NVML does not follow. None
    where NVML does not know it: a part of a GPU, or a container that hides it."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except nvml.NVMLError:
        return None


Readings = Mapping[str, Callable[[ModuleType, Any], float]]
LIMITS: Readings = {
    "most_sm_mhz": lambda nvml, handle: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
    "most_memory_mhz": lambda nvml, handle: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
    "power_limit_watts": lambda nvml, handle: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
}
STATE: Readings = {
    "sm_mhz": lambda nvml, handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
    "memory_mhz": lambda nvml, handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
    "watts": lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    "celsius": lambda nvml, handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    "memory_used": lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle).used,
    "throttle_reasons": lambda nvml, handle: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
}
ENERGY: Readings = {"joules": lambda nvml, handle: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000}


def _read(readings: Readings, nvml: ModuleType, handle: Any) -> dict[str, float]:
    """What the driver gives of them: GPUs, their drivers and containers lack one or another."""
    found = {}
    for name, reading in readings.items():
        with contextlib.suppress(nvml.NVMLError):
            found[name] = reading(nvml, handle)
    return found


def describe(device: torch.device) -> dict[str, Any] | None:
    """The GPU's limits and present state; None where they cannot be had."""
    nvml = library() if device.type == "cuda" else None
    handle = None if nvml is None else handle_of(nvml, device)
    return None if nvml is None or handle is None else _read({**LIMITS, **STATE}, nvml, handle)


def driver(device: torch.device) -> str | None:
    nvml = library() if device.type == "cuda" else None
    return None if nvml is None else str(nvml.nvmlSystemGetDriverVersion())


def _energy(nvml: ModuleType, handle: Any) -> float | None:
    """Joules since the driver was loaded; None on GPUs before Volta, which do not count them."""
    return _read(ENERGY, nvml, handle).get("joules")


@dataclass
class Watch:
    """``with Watch(device) as watch: ...``; then :meth:`summary` and :meth:`unfit` tell of that time.

    ``nvml`` and ``handle`` are found from the device unless given.
    """

    device: torch.device
    nvml: Any = None
    handle: Any = None
    samples: list[dict[str, float]] = field(default_factory=list)
    joules: float | None = None
    """Energy that the whole board took; None without a counter, and where the time was under :data:`METERED`."""

    def __enter__(self) -> Watch:
        if self.nvml is None and self.device.type == "cuda":
            self.nvml = library()
        if self.nvml is not None and self.handle is None:
            self.handle = handle_of(self.nvml, self.device)
        if self.handle is not None:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
            self._started, self._energy = time.perf_counter(), _energy(self.nvml, self.handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.handle is not None:
            energy, seconds = _energy(self.nvml, self.handle), time.perf_counter() - self._started
            if energy is not None and self._energy is not None and seconds >= METERED:
                self.joules = energy - self._energy
            self._stop.set()
            self._thread.join()

    def _run(self) -> None:
        while True:
            self.samples.append(_read(STATE, self.nvml, self.handle))
            if self._stop.wait(PERIOD):
                return

    def summary(self) -> dict[str, Any] | None:
        """Least and most of each reading, and all reasons for throttling that were seen; None without samples of a
        busy GPU."""
        # Between two kernels an idle GPU may lower its clock: that is no time of the measurement.
        complete = [sample for sample in self.samples if sample.keys() >= JUDGED]
        busy = [sample for sample in complete if IDLE not in self._names(int(sample["throttle_reasons"]))]
        if not busy:
            return None
        reasons = functools.reduce(operator.or_, (int(sample["throttle_reasons"]) for sample in busy))
        names = [name for name in busy[0] if name != "throttle_reasons" and all(name in sample for sample in busy)]
        spans = {name: [min(s[name] for s in busy), max(s[name] for s in busy)] for name in names}
        return {"samples": len(busy), **spans, "throttle_reasons": self._names(reasons)}

    def _names(self, reasons: int) -> list[str]:
        prefix = "nvmlClocksThrottleReason"
        named = {name: getattr(self.nvml, name) for name in dir(self.nvml) if name.startswith(prefix)}
        single = {name: value for name, value in named.items() if isinstance(value, int) and value.bit_count() == 1}
        return sorted(name.removeprefix(prefix) for name, value in single.items() if reasons & value)

    def unfit(self) -> str | None:
        """Why figures of that time must not be quoted; None if nothing speaks against them."""
        summary = self.summary()
        if summary is None:
            return None
        low, high = summary["sm_mhz"]
        if high > 0 and (high - low) / high > MOST_MOVED:
            return f"the clock moved from {low:g} to {high:g} MHz, {(high - low) / high:.1%}; at most {MOST_MOVED:.0%}"
        slowed = [name for name in summary["throttle_reasons"] if name in SLOWED]
        return f"throttled: {', '.join(slowed)}" if slowed else None


def unfit_by_load(busy_elsewhere: float | None) -> str | None:
    """Why a CPU's figures must not be quoted, from the CPUs that other processes kept busy meanwhile."""
    if busy_elsewhere is None or busy_elsewhere <= BUSY_ELSEWHERE:
        return None
    return f"other processes kept {busy_elsewhere:.2f} CPUs busy; at most {BUSY_ELSEWHERE:g}"

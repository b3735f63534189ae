"""What a device can do at best, and the least time that a given amount of work takes there.

Published peaks are the vendors' own, from data sheets and architecture white papers: dense (not "with sparsity"), at
boost clock, fp32 accumulation. A real GEMM reaches about 70-80 % of the arithmetic and a real kernel about 80-90 % of
the bandwidth, so a floor computed from them is never met. :func:`measure_this_machine` gives the same figures as found
by running them.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TERA, GIGA, KIB = 10**12, 10**9, 2**10


@dataclass(frozen=True)
class Device:
    """Peaks of one device.

    ``flops``: dense FLOP/s (a multiply-add is two) on operands of ``dtype``. ``bandwidth``: bytes/s of main memory.
    ``memory``: bytes of it. ``multiprocessors``: their number; ``shared_memory``: the most bytes of it that one block
    may have. Both are 0 on a CPU. ``name`` is what CUDA calls the device, where CUDA knows it.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    multiprocessors: int = 0
    shared_memory: int = 0
    dtype: torch.dtype = torch.bfloat16


# Memory in the sheets' gigabytes, taken as 10^9 bytes: CUDA reports about that much as usable.
DEVICES: dict[str, Device] = {
    "A100-40GB": Device("NVIDIA A100-SXM4-40GB", 312 * TERA, 1_555 * GIGA, 40 * GIGA, 108, 163 * KIB),
    "A100-80GB": Device("NVIDIA A100-SXM4-80GB", 312 * TERA, 2_039 * GIGA, 80 * GIGA, 108, 163 * KIB),
    "H100": Device("NVIDIA H100 80GB HBM3", 990 * TERA, 3_350 * GIGA, 80 * GIGA, 132, 227 * KIB),
    "H200": Device("NVIDIA H200", 990 * TERA, 4_800 * GIGA, 141 * GIGA, 132, 227 * KIB),
    "L40S": Device("NVIDIA L40S", 362 * TERA, 864 * GIGA, 48 * GIGA, 142, 99 * KIB),
    "RTX4090": Device("NVIDIA GeForce RTX 4090", 165.2 * TERA, 1_008 * GIGA, 24 * GIGA, 128, 99 * KIB),
}
"""Published peaks by short name. H100 is the SXM board."""


def published(name: str) -> Device:
    """The device with this key in :data:`DEVICES`, or with this name in CUDA; a ValueError lists the keys if none."""
    for key, device in DEVICES.items():
        if name in (key, device.name):
            return device
    raise ValueError(f"device: expected one of {', '.join(DEVICES)} (or its name in CUDA); got {name!r}")


def floor_seconds(flops: float, num_bytes: float, device: Device) -> float:
    """Least seconds for ``flops`` operations and ``num_bytes`` bytes of memory traffic, wholly overlapped."""
    return max(flops / device.flops, num_bytes / device.bandwidth)


# ------------------------------------------------------------------------------------------------- what to compute in


def cpu_supports_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware, and oneDNN is there to use it.

    oneDNN calls bf16 "supported" on every x86 processor with AVX-512, but without AVX512-BF16 or AMX it emulates it,
    and loses: on an EPYC with AVX512-BF16 (2 cores) a 1024^3 GEMM runs at 400 GFLOP/s in bf16 and 160 in fp32; told
    by ONEDNN_MAX_CPU_ISA=AVX512_CORE not to use these instructions, at 49 in bf16 and still 160 in fp32; and 8 rows
    times a packed weight, bound by memory, take 2.5 times as long as in fp32 though bf16 has half the bytes. So on x86
    the instructions are asked for too. On other processors oneDNN's answer is already one about instructions.
    """
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return _has_instructions("_is_avx512_bf16_supported") or _has_instructions("_is_amx_tile_supported")


def _has_instructions(probe: str) -> bool:
    # These are torch's private names: one that a later torch has dropped counts as "no", which costs speed only.
    function = getattr(torch.cpu, probe, None)
    return function is not None and bool(function())


# Of x86 processors, the later first: each but AMX has all those below it.
_INSTRUCTIONS = {
    "AMX": "_is_amx_tile_supported",
    "AVX512-BF16": "_is_avx512_bf16_supported",
    "AVX512-VNNI": "_is_vnni_supported",
    "AVX512": "_is_avx512_supported",
    "AVX2": "_is_avx2_supported",
}


def cpu_features() -> tuple[str, ...]:
    """The instructions that tell processors of one name apart, the later first: ("AVX512-BF16", ..., "AVX2")."""
    return tuple(name for name, probe in _INSTRUCTIONS.items() if _has_instructions(probe))


def default_dtype(device: str | torch.device) -> torch.dtype:
    """The fastest dtype that holds the model's activations: bf16 where it runs in hardware; else fp16 on a GPU
    (compute capability below 8.0), fp32 on a CPU and on any other kind of device."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_supports_bf16() else torch.float32


class _Shared:
    """A setting of the process that threads change for a while. Those that want one value hold it together; who wants
    another waits until they are done, and the last one puts back what was there. A thread that holds a value already
    takes another without waiting: two such could wait for each other."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self._read, self._write = read, write
        self._changed = threading.Condition()
        self._held: Counter[int] = Counter()  # by thread
        self._before = self._now = None

    @contextmanager
    def held(self, value: Any) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: me in self._held or not self._held or self._now == value)
            if not self._held:
                self._before = self._now = self._read()
            outer = self._now
            self._held[me] += 1
            self._set(value)
        try:
            yield
        finally:
            with self._changed:
                self._held[me] -= 1
                if self._held[me] == 0:
                    del self._held[me]
                if not self._held:
                    self._set(self._before)
                elif me in self._held:
                    self._set(outer)
                self._changed.notify_all()

    def _set(self, value: Any) -> None:
        self._write(value)
        self._now = value


def _read_fp32() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]


def _write_fp32(both: tuple[str, str]) -> None:
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = both  # type: ignore[attr-defined]


def _write_benchmark(value: bool) -> None:
    torch.backends.cudnn.benchmark = value


_fp32 = _Shared(_read_fp32, _write_fp32)
_benchmark = _Shared(lambda: torch.backends.cudnn.benchmark, _write_benchmark)


@contextmanager
def fp32_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """How cuBLAS and cuDNN multiply fp32 numbers meanwhile. Torch's default is TF32 in convolutions and not in matrix
    products; a captured graph keeps what held when it was captured.

    Set by the new one of torch's two names for these switches alone, which never looks at the old one: reading that,
    ``allow_tf32``, is refused wherever the two tell different stories, in here too. Afterwards both have the values
    that they had, as their own: one that followed ``torch.backends.fp32_precision`` no longer does. They are the
    process's switches: a thread that wants others waits.
    """
    if device.type != "cuda":
        yield
        return
    with _fp32.held(("tf32",) * 2 if tf32 else ("ieee",) * 2):
        yield


@contextmanager
def cudnn_benchmark(device: torch.device, wanted: bool) -> Iterator[None]:
    """Where ``wanted``: cuDNN times its algorithms at each new shape meanwhile, and keeps the fastest."""
    if device.type != "cuda" or not wanted:
        yield
        return
    with _benchmark.held(True):
        yield


# ---------------------------------------------------------------------------------------------------- this machine

BUDGET_SECONDS = 0.4  # for each of the two rates
# A CPU's GEMM is fastest where its matrices still fit the caches: several sizes are tried and the best counts.
CPU_GEMM_SIZES = (512, 1024, 2048)
CUDA_GEMM_SIZES = (8192,)
CPU_STREAM_BYTES = 512 * 2**20  # several times the last-level cache of most processors
CUDA_STREAM_BYTES = 2**30


def pick_device(wanted: Any) -> torch.device:
    """The device asked for; None: the GPU where there is one. ValueError unless it is here and can be used."""
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(wanted)
        torch.empty(0, dtype=torch.float32, device=picked)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected cpu, cuda or cuda:N that is present here; got {wanted!r} ({reason})"
        ) from None
    return picked


def send(value: Tensor, device: torch.device) -> Tensor:
    """A CPU's tensor on a device. On a GPU nothing waits: from memory that is not page-locked, a copy would hold up the
    host until the stream's earlier work is done. (Torch keeps the page-locked copy until it has been read.)"""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def device_name(device: torch.device) -> str:
    """What CUDA calls the GPU, or :func:`cpu_name`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """The processor as the kernel names it on Linux, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_this_machine(device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Device:
    """Peaks of the GPU if there is one, else of the CPU, as plain torch reaches them: about 2 seconds, 0.6 to 2 GB.

    ``flops`` is the best square GEMM's in ``dtype`` (None: :func:`default_dtype`), ``bandwidth`` that of summing a
    large tensor: reading, which is what streaming weights is. On a CPU both depend on ``torch.get_num_threads()`` and
    on whatever else is running.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or default_dtype(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Device(
            name=f"{properties.name}, measured",
            flops=_gemm_rate(device, dtype, CUDA_GEMM_SIZES),
            bandwidth=_stream_rate(device, CUDA_STREAM_BYTES),
            memory=properties.total_memory,
            multiprocessors=properties.multi_processor_count,
            # AMD's builds of torch know one limit, NVIDIA's also the higher one that a kernel may opt into.
            shared_memory=getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block),
            dtype=dtype,
        )
    return Device(
        name=f"{platform.machine()} CPU with {torch.get_num_threads()} threads, measured",
        flops=_gemm_rate(device, dtype, CPU_GEMM_SIZES),
        bandwidth=_stream_rate(device, CPU_STREAM_BYTES),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        dtype=dtype,
    )


@torch.inference_mode()
def _gemm_rate(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]) -> float:
    """FLOP/s of the best of these n x n x n products. Sizes ascend; the rest are left out once one would take long."""
    rate, budget = 0.0, BUDGET_SECONDS / len(sizes)
    noise = torch.Generator(device)  # else what is drawn after a measurement would be other than without one
    for n in sizes:
        if rate > 0 and 2 * n**3 / rate > BUDGET_SECONDS:
            break
        left, right = (
            torch.randn(n, n, dtype=torch.float32, device=device, generator=noise).to(dtype) for _ in range(2)
        )
        out = torch.empty_like(left)
        seconds = _best_seconds(lambda: torch.mm(left, right, out=out), device, budget)  # noqa: B023
        rate = max(rate, 2 * n**3 / seconds)
    return rate


@torch.inference_mode()
def _stream_rate(device: torch.device, num_bytes: int) -> float:
    """Bytes/s of reading a tensor of ``num_bytes`` once."""
    # Ones, not zeros: fresh zero pages on a CPU may all be one page, read from the cache.
    values = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    return values.nbytes / _best_seconds(lambda: values.sum(), device, BUDGET_SECONDS)


def _best_seconds(run: Callable[[], object], device: torch.device, budget: float) -> float:
    """The shortest run of as many as start within ``budget`` seconds, after one that is not timed."""
    clock = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    run()
    deadline = time.perf_counter() + budget
    best = clock(run, device)
    while time.perf_counter() < deadline:
        best = min(best, clock(run, device))
    return best


def _cpu_seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_seconds(run: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3

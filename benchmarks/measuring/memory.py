"""Memory that a measurement may take: a case that is too large is refused, not ended by the OOM killer."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

MARGIN = 0.9  # of what is free: the interpreter and the system need some meanwhile
CGROUP = Path("/sys/fs/cgroup")


class TooLarge(Exception):
    """What was asked for does not fit in memory; the message is one line."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had on the device; None where the system does not tell."""
    if device.type == "cuda":
        # The allocator's cache counts as used there, and is at our disposal.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    available = _kibibytes(Path("/proc/meminfo"), "MemAvailable")
    limit = _read_int(CGROUP / "memory.max")  # a container's
    used = _read_int(CGROUP / "memory.current")
    left = [] if limit is None or used is None else [max(0, limit - used)]
    return min([*left, available]) if available is not None else None


def require(what: str, num_bytes: float, device: torch.device) -> None:
    """Raise :class:`TooLarge` if ``what`` needs more bytes than are free."""
    free = free_bytes(device)
    if free is not None and num_bytes > MARGIN * free:
        raise TooLarge(f"{what} needs at least {num_bytes / 2**30:,.1f} GiB; {free / 2**30:,.1f} GiB are free")


@contextlib.contextmanager
def guarded(what: str, device: torch.device) -> Iterator[None]:
    """Allocations beyond what is free fail within, on a CPU too, and leave it as :class:`TooLarge`.

    A CPU's tensors would otherwise be promised memory that is not there, and the process killed when it writes to them.
    """
    with contextlib.nullcontext() if device.type == "cuda" else _data_limit(free_bytes(device)):
        try:
            yield
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not _is_about_memory(error):
                raise
            raise TooLarge(f"{what} does not fit in memory: {str(error).strip().partition(chr(10))[0]}") from None


def _is_about_memory(error: BaseException) -> bool:
    signs = ("can't allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def _data_limit(free: int | None) -> Iterator[None]:
    """Limit the process's private writable memory to what it has and ``free``; on Linux, elsewhere nothing."""
    held = _kibibytes(Path("/proc/self/status"), "VmData")
    if free is None or held is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [held + int(MARGIN * free), *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _kibibytes(file: Path, field: str) -> int | None:
    """Bytes in the line ``field:  1234 kB`` of one of the kernel's tables."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _read_int(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or "max"
        return None

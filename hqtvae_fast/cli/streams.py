"""The process's own stdout and stderr while a command runs: no reader can stop it before its files are written."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


class Sink(io.RawIOBase):
    """A file descriptor to which a write never fails: after the first ``error`` the rest is dropped."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: Any) -> int | None:
        if self.error is None:
            try:
                return os.write(self.descriptor, data)
            except BlockingIOError:
                return None  # what io expects of a raw stream
            except OSError as error:
                self.error = error
        return len(memoryview(data).cast("B"))


@contextmanager
def steady_streams() -> Iterator[None]:
    """Meanwhile a reader that goes away, a full disk and characters that an encoding lacks cost no work.

    Only of streams that are the process's own: what a caller of :func:`hqtvae_fast.cli.main` has put in their place
    stays. Raises OSError at the end if something that was said could not be written; a reader that went away is none.
    """
    kept = sys.stdout, sys.stderr
    out, stdout = _steady(sys.stdout, sys.__stdout__, 1, "replace")
    _, stderr = _steady(sys.stderr, sys.__stderr__, 2, "backslashreplace")
    sys.stdout, sys.stderr = stdout, stderr
    try:
        yield
    finally:
        for stream in (stdout, stderr):
            stream.flush()
        sys.stdout, sys.stderr = kept
    if out is not None and out.error is not None and not isinstance(out.error, BrokenPipeError):
        raise OSError(out.error.errno, out.error.strerror, "standard output")


def _steady(stream: TextIO | None, own: TextIO | None, descriptor: int, errors: str) -> tuple[Sink | None, TextIO]:
    if stream is None:  # closed by whoever started the process
        return None, open(os.devnull, "w", encoding="utf-8")
    if stream is not own:
        return None, stream
    stream.flush()
    sink = Sink(descriptor)
    buffered = io.BufferedWriter(sink)
    return sink, io.TextIOWrapper(buffered, stream.encoding, errors, line_buffering=sink.isatty())


def talk_aside(path: Path) -> None:
    """Where ``path`` is stdout itself, what is said goes to stderr from now on: stdout is the file's alone."""
    if path.exists() and str(path) in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        sys.stdout = sys.stderr

"""Ending a run before its time: signals and clocks ask for it, and the run ends when it has saved."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

ASKING = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what batch systems and service managers send

STDERR = 2


class Stopped(SystemExit):
    """A signal ended a run, which has saved all and said how to go on; ``code`` is what shells expect: 130, 143."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Signals:
    """While it is entered, the first signal only asks for an end, which ``asked`` tells; a second Ctrl-C ends at once,
    as ever. Outside the main thread, where Python allows no handlers, nothing changes."""

    def __init__(self, *, shown: bool = True) -> None:
        self.asked: int | None = None
        self._shown = shown
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in ASKING}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            # One that was not set from Python cannot be set again from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = number
            if self._shown:
                again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
                with suppress(OSError):
                    os.write(
                        STDERR, f"\nsaving after this update{again}\n".encode()
                    )  # safe at any moment, unlike print
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

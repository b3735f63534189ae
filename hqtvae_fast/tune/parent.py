"""Gives jobs to a worker process, one by one. Whatever a job does to its worker costs that job alone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

START_SECONDS = 300.0
"""For a worker to import torch, on a machine that is busy."""

Job = Mapping[str, Any]
Answer = Mapping[str, Any]


class WorkerError(RuntimeError):
    """No worker can be started."""


class Parent:
    """At most one worker at a time, started when a job is there for it; ``specs`` as the worker takes it.

    A worker that crashes, or does not answer in time and is then killed (by its pid, it alone), is replaced at the next
    job.
    """

    def __init__(self, specs: str | None = None) -> None:
        self._arguments = [] if specs is None else [specs]
        self._worker: _Worker | None = None
        self.started = 0
        """Workers so far."""

    def ask(self, job: Job, seconds: float) -> Answer:
        """The worker's answer: a ``status``, and a ``reason`` where it is none of "right". "crashed" and "hung" are the
        parent's own words: the worker is gone, and this job may be why."""
        if self._worker is None:
            self._worker = _Worker(self._arguments)
            self.started += 1
        worker = self._worker
        answer = worker.ask(job, seconds)
        if answer is None:
            self._worker = None
            worker.kill()
            return {"status": "hung", "reason": f"did not finish within {seconds:.0f} s"}
        if answer["status"] == "crashed":
            self._worker = None
        elif answer.get("broken") is not None:
            self.close()
            reason = answer["broken"] if answer["status"] == "right" else f"{answer['reason']}; {answer['broken']}"
            return {"status": "crashed", "reason": reason}
        return answer

    def fresh(self) -> None:
        """The next job gets a new worker."""
        self.close()

    def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def __enter__(self) -> Parent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Worker:
    def __init__(self, arguments: list[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        command = [sys.executable, "-m", "hqtvae_fast.tune.worker", *arguments]
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # the same code as ours, wherever it is
        # In a session of its own, so that Ctrl-C is told to us alone, who then end it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        try:
            ready = self._next(START_SECONDS)
        except BaseException:
            self.kill()
            raise
        if ready is None or ready["status"] != "ready":
            why = f"did not start within {START_SECONDS:.0f} s" if ready is None else ready["reason"]
            self.kill()
            raise WorkerError(f"the process that variants are tried in: {why}")

    def ask(self, job: Job, seconds: float) -> Answer | None:
        """None: no answer in time."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended; how is what the answer says
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        return self._next(seconds)

    def _read(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _next(self, seconds: float) -> Answer | None:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        if line:
            answer: Answer = json.loads(line)
            return answer
        return {"status": "crashed", "reason": self._ending()}

    def _ending(self) -> str:
        code = self._process.wait()
        how = f"ended with exit code {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        return f"{how} ({said.splitlines()[-1].strip()})" if said else how

    def kill(self) -> None:
        """This process alone, by its pid."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._errors.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


__all__ = ["Answer", "Job", "Parent", "WorkerError"]

"""Runs checks of Triton kernels under Triton's interpreter, in a process of its own for each program.

TRITON_INTERPRET is read when a kernel is defined, and other tests are not to meet it. One process runs all checks of a
program, and is forked from one that has imported all (:mod:`forked`): starting one costs more than most of them.
:mod:`watch` looks at every place that a kernel loads or stores.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


def why_not(triton: str | None, numpy: str) -> str | None:
    """None where these versions' interpreter runs, else the reason."""
    if triton is None:
        return "Triton is not installed"
    as_numbers = [tuple(int(part) for part in version.split(".")[:2]) for version in (triton, numpy)]
    if as_numbers[0] < (3, 7) and as_numbers[1] >= (2, 4):
        return f"Triton {triton}'s interpreter takes arrays for numbers, which NumPy {numpy} refuses (2.3 takes them)"
    return None


TRITON = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None
REASON = why_not(TRITON, importlib.metadata.version("numpy"))
needs_triton = pytest.mark.skipif(REASON is not None, reason=str(REASON))

RUN_ALL = """
import json
import sys
import traceback

import watch

watch.install()
outcomes = {}
for check in sys.argv[1:]:
    try:
        globals()[check]()
        outcomes[check] = ""
    except Exception:
        outcomes[check] = traceback.format_exc()
print("outcomes:" + json.dumps(outcomes))
"""


class Checks(NamedTuple):
    """Names of a program's checks. ``slow``: those that a quick run leaves out, what ``torch.library.opcheck`` says of
    an operator among them, which it says of the CPU's backends in every run."""

    quick: tuple[str, ...]
    slow: tuple[str, ...]

    @property
    def params(self) -> list[Any]:
        """Parameters of a test."""
        return [*self.quick, *(pytest.param(name, marks=pytest.mark.slow) for name in self.slow)]

    def beside(self, check: str) -> tuple[str, ...]:
        """Those that run in the same process."""
        return self.slow if check in self.slow else self.quick


@functools.cache
def outcomes(program: str, checks: tuple[str, ...]) -> dict[str, str]:
    """Calls each of the program's functions named in ``checks``: what it raised, "" if nothing."""
    return _interpret("-c", program + RUN_ALL, *checks)


@functools.cache
def file_outcomes(file: str, checks: tuple[str, ...]) -> dict[str, str]:
    """The same with a test file as the program, which calls :func:`main` where it is run and not imported."""
    return _interpret(file, *checks)


def main(checks: Mapping[str, Callable[[], None]]) -> None:
    """Runs those of ``checks`` that the command line names, as a program of :func:`file_outcomes` must."""
    exec(RUN_ALL, dict(checks))


@functools.cache
def _server() -> subprocess.Popen[str]:
    """One for all programs of this process: :mod:`forked`."""
    environment = {key: value for key, value in os.environ.items() if key != "HQTVAE_BACKEND"}
    environment |= {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    environment["OMP_NUM_THREADS"] = "1"  # threads do not outlive a fork
    command = [sys.executable, "-W", "ignore::RuntimeWarning", str(Path(__file__).with_name("forked.py"))]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)  # it ends with its input
    return server


def _interpret(*arguments: str) -> dict[str, str]:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        server.stdin.write(json.dumps({"arguments": arguments, "out": str(out)}) + "\n")
        server.stdin.flush()
        status = server.stdout.readline().strip()
        said = out.read_text() if out.exists() else ""
    assert status == "0", f"{arguments[-1]}: exit status {status or 'none: the server ended'}\n{said}"
    return json.loads(said.rpartition("outcomes:")[2])

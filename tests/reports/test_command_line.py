"""What the command costs before it works: help, version and slips of the finger import nothing that is heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "PIL", "safetensors", "tokenizers", "huggingface_hub", "yaml", "accelerate", "matplotlib")
PROBE = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from hqtvae_fast.cli import main
ends = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(arguments)
    ends.append([arguments, code, said.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]])
print(json.dumps(ends))
"""
COMMANDS = (
    *("sample", "reconstruct", "encode", "decode", "evaluate", "pack", "convert", "info", "tune"),
    *("train", "train stage1", "train stage2", "train presets"),
    *("figure", "figure levels", "figure resampling", "figure redraw", "figure usage", "figure neighbours"),
    "figure speed",
)
HELPS = [["--help"], ["--version"], *([*command.split(), "--help"] for command in COMMANDS)]
SLIPS = [["smaple"], ["sample", "demo", "--clases", "1"], ["sample"], ["sample", "demo", "--num-images", "none"]]


def ends_of(calls: list[list[str]]) -> list[tuple[list[str], int, str, list[str]]]:
    """Of each call, one after another in a new process: its arguments, exit code, words, and the heavy modules then."""
    command = [sys.executable, "-c", PROBE, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"})
    return [tuple(end) for end in json.loads(done.stdout)]


def test_T7_help_and_version_import_nothing_heavy() -> None:
    for arguments, code, said, modules in ends_of(HELPS):
        assert (code, modules) == (0, []), arguments
        assert arguments == ["--version"] or "Usage:" in said


@pytest.mark.parametrize("slip", SLIPS, ids=" ".join)
def test_T7_a_slip_of_the_finger_imports_nothing_heavy(slip: list[str]) -> None:
    ((_, code, said, modules),) = ends_of([slip])
    assert (code, modules) == (2, [])
    assert said.startswith("error: ")
    assert said.count("\n") == 1

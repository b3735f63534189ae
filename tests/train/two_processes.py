"""Runs by one process, this one, and by two, which start once for all: starting them costs more than such runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hqtvae_fast.cli import main

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys

from hqtvae_fast.cli import leave, main

*first, last = (["train", *words.split("=", 1)] for words in sys.argv[1:])
for arguments in first:
    assert main(arguments) == 0
sys.argv[1:] = last
leave.run()
"""


def train_by_one_and_by_two(
    runs: Mapping[str, Mapping[str, Any]], folder: Path, by_two: Mapping[str, Mapping[str, Any]]
) -> Path:
    """The commands ``hqtvae train <stage> <file>`` for the fields of named runs, the first word of whose name is the
    stage: into ``folder/<name>/1`` by this process and into ``folder/<name>/2`` by two, with the fields ``by_two`` as
    well."""
    files = []
    for name, fields in runs.items():
        for count, more in ((1, {}), (2, by_two.get(name, {}))):
            files.append(folder / f"{name}-{count}.yaml")
            files[-1].write_text(yaml.safe_dump({**fields, **more, "out": str(folder / name / str(count))}))
        assert main(["train", name.split()[0], str(files[-2])]) == 0
    program = folder / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(program)]
    words = [f"{name.split()[0]}={file}" for name, file in zip(runs, files[1::2], strict=True)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([*launch, *words], env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    return folder

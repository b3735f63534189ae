"""python -m hqtvae_fast.compat without the released code: what it says, and scripts that it does not know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hqtvae_fast.compat", *map(str, arguments)]
    how = {"cwd": folder, "env": environment, "timeout": 200, "check": False}
    return subprocess.run(command, capture_output=True, text=True, **how)


@pytest.mark.parametrize("target", [["mine.py"], pytest.param(["-m", "mine"], marks=pytest.mark.slow)])
def test_what_is_not_known_runs_as_it_is(tmp_path, target):
    (tmp_path / "mine.py").write_text("import sys\nprint(__name__, sys.argv[1:])\nraise SystemExit(3)\n")
    done = run(tmp_path, *target, "--help")
    assert done.stdout == "__main__ ['--help']\n"
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("hqtvae_fast stands in for: ")


STAND_INS = """
import dataclasses, torch
import pytorch_lightning as pl
import torchvision.transforms as transforms
from torchvision.datasets import VisionDataset

@dataclasses.dataclass
class Part:
    size: int = 1

@dataclasses.dataclass
class Whole:
    part: Part = Part()

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Linear(2, 2)

one, other = Whole(), Whole()
one.part.size = 2
print(other.part.size, VisionDataset("here").root, sum(p.numel() for p in Model().parameters()))
resize = transforms.Resize(8)
if not torch.cuda.is_available():
    print(torch.ones(2).cuda().to("cuda").device, next(Model().to(device="cuda").parameters()).device)
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    print(event.elapsed_time(event))
resize(None)
"""


def test_stand_ins_and_an_error_of_the_scripts_own(tmp_path):
    (tmp_path / "mine.py").write_text(STAND_INS)
    done = run(tmp_path, "mine.py")
    assert done.stdout.splitlines()[0] == "1 here 6"
    assert "cpu cpu" in done.stdout or "cuda" in done.stdout
    trace = done.stderr.split("Traceback (most recent call last):\n")[1].splitlines()
    assert 'mine.py", line' in trace[0]  # nothing of ours, nor of runpy's, comes before
    assert (
        trace[-1]
        == "ImportError: torchvision.transforms.Resize is used: install torchvision, of which only a stand-in is here"
    )
    assert done.returncode == 1


@pytest.mark.slow
def test_a_package_that_fails_is_stood_for(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator is missing')")
    (tmp_path / "ftfy.py").write_text("name = 'the real one'")
    (tmp_path / "mine.py").write_text(
        "import ftfy\nfrom torchvision import models\nimport torchvision.transforms\nprint(ftfy.name, models)\n"
    )
    done = run(tmp_path, "mine.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the real one")
    assert "torchvision fails (RuntimeError: operator is missing)" in done.stderr


def test_help_and_mistakes_are_light(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    done = run(tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    for taught in ("sampling_hqmodel.py", "measure_throughput", "--explain", "--dtype"):
        assert taught in done.stdout
    done = run(tmp_path, "missing.py")
    assert done.returncode == 2
    assert "missing.py: no such script" in done.stderr
    assert "expected a script, or -m and a module" in run(tmp_path).stderr


@pytest.mark.slow
def test_explain_lists_all_of_it(tmp_path):
    done = run(tmp_path, "--explain")
    assert done.returncode == 0
    for replaced in ("hqvae.models.ImageGPT2", "pytorch_lightning", "torchvision", "dataclasses", "torch.load"):
        assert replaced in done.stderr

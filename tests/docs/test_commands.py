"""Every command and every block of Python of README and docs/ runs, in a folder of small stand-ins."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks, commands, words
from PIL import Image
from workplace import make_workplace

from hqtvae_fast.cli import main

# What is left out, by how the command begins, and why.
NOT_RUN = {
    "pip install": "needs a package registry, and changes the environment that tests run in",
    "hqtvae bench generate --preset S": "minutes, and the released code",
    "hqtvae bench compare": "minutes; tests/benchmarks has it",
    "python -m hqtvae_fast.compat sampling_hqmodel.py": "the released code; tests/compat has it",
    "hqtvae evaluate --reference val/ --samples samples/ --features inception:": "weights that are not here",
    "hqtvae sample released/ --classes 0-999": "a classifier's weights that are not here",
    'hqtvae sample demo --prompt "a red vase"': "CLIP's weights, which are not here",
}
# The same with less of it: shorter sets, and runs that end after two updates.
LESS = {
    "{000..099}": "{000..001}",
    "range(1000)": "range(2)",
    "num_images=50": "num_images=2",
    "--num-images 50000": "--num-images 6",
    "--top-k 2048": "--top-k 48",
    "top_k=2048": "top_k=48",
    "--budget 0.5": "--budget 0.05 --batches 1",
    "--budget 0.2 --batches 1,8": "--dry-run",
    "--draws 7": "--draws 2",
    "--images 2": "--images 1",
    "--op nearest_code --device cpu": "--op bias_gelu --device cpu",  # of which no baseline is compiled
    "--count 10": "--count 2",
    "--workers 8": "--workers 1",
}
APPENDED = {
    "train": ["--steps", "2", "--batch-size", "4"],
    "info": ["--no-measure"],
    "bench generate": ["--repeats", "1", "--baselines", "none"],
    "bench ops": ["--repeats", "1"],
    "bench precision": ["--dtype", "fp32"],
}
# What takes longer than a few seconds, and what comes after it reads.
LONG = "hqtvae train "
# What takes seconds and leaves nothing that later commands read: run with the trainings.
HEAVY = (
    "hqtvae tune demo --budget 0.5",
    "hqtvae bench precision",
    "hqtvae bench report",
    "hqtvae evaluate --reference val/ --reconstruct",
    "hqtvae evaluate --reference emoji-128-val.tar --reconstruct",
    "hqtvae tune --preset S --batches 1 --dry-run",
    "hqtvae info --preset S --no-measure",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_workplace(folder)
    return folder


@pytest.fixture
def workplace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own for each page: pages write files of the same names."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def name_of(page: Path) -> str:
    return page.name


def less(text: str) -> str:
    for much, little in LESS.items():
        text = text.replace(much, little)
    return text


def is_run(command: str) -> bool:
    return not any(command.startswith(beginning) for beginning in NOT_RUN)


def is_long(command: str) -> bool:
    return command.startswith(LONG)


def is_heavy(command: str) -> bool:
    return command.startswith(HEAVY)


def takes_long(command: str) -> bool:
    return is_long(command) or is_heavy(command)


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """In this process where it is Python's, and by bash else."""
    said = words(command)
    with monkeypatch.context() as patch:
        while re.match(r"[A-Z_]+=", said[0]):
            patch.setenv(*said.pop(0).split("=", 1))
        if said[0] == "torchrun":  # one process does the same work
            said = ["hqtvae", *said[said.index("hqtvae_fast.cli") + 1 :]]
        if said[0] == "hqtvae":
            more = [word for start, added in APPENDED.items() if " ".join(said[1:]).startswith(start) for word in added]
            more = [] if set(said) & {"presets", *more[:1]} else more
            return main([*said[1:], *more])
        if said[:2] == ["python", "-m"]:  # which may leave its process changed
            path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            return subprocess.run([sys.executable, *said[1:]], env={**os.environ, "PYTHONPATH": path}).returncode
        if said[0] == "python":
            patch.setattr(sys, "argv", said[1:])
            runpy.run_path(said[1], run_name="__main__")
            return 0
    return subprocess.run(["bash", "-c", command], env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def run_all(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in map(less, asked):
        if command.startswith("("):  # a subshell
            assert subprocess.run(["bash", "-c", command]).returncode == 0, command
        else:
            assert run(command, monkeypatch) == 0, command
    for name in re.findall(r"--out (\S+\.(?:png|jpg))", "\n".join(asked)):
        with Image.open(name) as image:
            image.load()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_commands_run(page, workplace, monkeypatch):
    """Those before the first training but for the heavy ones; a page with either is run whole by the next test."""
    asked = list(filter(is_run, commands(page)))
    quick = itertools.takewhile(lambda command: not is_long(command), asked)
    run_all([command for command in quick if not is_heavy(command)], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(takes_long, commands(page)))], ids=name_of)
def test_what_takes_long_runs_too(page, workplace, monkeypatch):
    pytest.importorskip("accelerate", reason="training needs the train extra")
    run_all(list(filter(is_run, commands(page))), monkeypatch)


WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_its_python_runs(page, workplace):
    for block in blocks(page):
        if block.language == "python":
            exec(compile(less(block.text), f"{page.name}:{block.line}", "exec"), {})


def test_what_is_not_run_is_little_and_named_somewhere():
    everything = [command for page in PAGES for command in commands(page)]
    assert len([command for command in everything if not is_run(command)]) <= 11
    assert len(NOT_RUN) <= 7
    assert all(any(command.startswith(start) for command in everything) for start in NOT_RUN)
    whole = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [much for much in LESS if much not in whole] == []
    assert all(any(command.startswith(start) for command in everything) for start in HEAVY)

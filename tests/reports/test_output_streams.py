"""A stdout that goes away, is full or cannot hold a character costs no file, and no reader sees a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASSES = str(ROOT / "tests" / "golden" / "class_parallel")
PROBE = """
import json, os, sys
from hqtvae_fast.cli import main
own = os.dup(1)
def gone():
    reader, writer = os.pipe()
    os.close(reader)
    return writer
stdouts = {
    "gone": gone,
    "full": lambda: os.open("/dev/full", os.O_WRONLY),
    "file": lambda: os.open("stdout", os.O_WRONLY | os.O_CREAT),
    "own": lambda: own,
}
codes = []
for stdout, arguments in json.loads(sys.argv[1]):
    os.dup2(stdouts[stdout](), 1)
    codes.append(main(arguments))
os.dup2(own, 1)
print(json.dumps(codes), file=sys.stderr)
"""
NETWORK = """
import torch
class Means(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) / 255
def make():
    return Means()
"""
EVALUATE = ["evaluate", "--reference", "a", "--samples", "b", "--features", "means:make", "--keep", "0", "--out"]
COMMANDS = {
    "sample": (["sample", CLASSES, "--classes", "1", "--out", "s.png", "--save-codes", "s.safetensors"], "s.png"),
    "encode": (["encode", CLASSES, "a", "--out", "c.safetensors"], "c.safetensors"),
    "decode": (["decode", CLASSES, "c.safetensors", "--out", "d.webp"], "d.webp"),
    "reconstruct": (["reconstruct", CLASSES, "a", "--out", "r.jpg"], "r.jpg"),
    "evaluate": ([*EVALUATE, "m.json"], "m.json"),
    "figure": (["figure", "levels", CLASSES, "--classes", "1", "--out", "f.png"], "f.png"),
    "pack": (["pack", "a", "--out", "p.npz"], "p.npz"),
    "convert": (["convert", CLASSES, "converted"], "converted/config.json"),
    "info": (["info", CLASSES, "--no-measure"], None),
}


@dataclass(frozen=True)
class Ended:
    folder: Path
    codes: list[int]
    out: bytes
    err: str


def filled(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for index in range(3):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    (folder / "means.py").write_text(NETWORK)
    return folder


def run(folder: Path, *calls: tuple[str, list[str]]) -> Ended:
    """Commands, one after another in one process, each with a stdout of its own that cannot hold an arrow."""
    path = os.pathsep.join([str(ROOT), str(folder)])
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": path, "COLUMNS": "100"}
    command = [sys.executable, "-c", PROBE, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, cwd=folder, env=environment, check=False)
    err = done.stderr.decode("cp1252")
    assert done.returncode == 0, err
    return Ended(folder, json.loads(err.splitlines()[-1]), done.stdout, err)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """One process for all: importing torch is most of what a command costs."""
    return run(
        filled(tmp_path_factory.mktemp("streams")),
        ("gone", COMMANDS["sample"][0]),
        ("full", COMMANDS["encode"][0]),
        ("gone", [*EVALUATE, "gone.json"]),
        ("own", COMMANDS["evaluate"][0]),
        ("file", ["sample", CLASSES, "--classes", "1", "--out", "/dev/stdout"]),
    )


def test_G4_a_reader_that_went_away_costs_no_file(ended: Ended) -> None:
    assert (ended.codes[0], ended.codes[2]) == (0, 0)
    assert all((ended.folder / name).stat().st_size > 0 for name in ("s.png", "s.safetensors", "gone.json"))
    assert "Traceback" not in ended.err
    assert "Exception ignored" not in ended.err


@pytest.mark.skipif("not os.path.exists('/dev/full')")
def test_G4_a_full_stdout_costs_no_file_and_is_an_error(ended: Ended) -> None:
    assert ended.codes[1] == 2
    assert (ended.folder / "c.safetensors").stat().st_size > 0
    assert ended.err.count("error: ") == ended.err.count("error: standard output: No space left on device\n") == 1


def test_F8_a_stdout_that_cannot_hold_an_arrow_shows_another_character(ended: Ended) -> None:
    shown = ended.out.decode("cp1252")
    assert "Fr\xe9chet" in shown
    assert "?" in shown
    assert "wrote m.json" in shown
    assert json.loads((ended.folder / "m.json").read_text(encoding="utf-8"))["pictures"] == 3


def test_F21_a_picture_goes_to_stdout_alone(ended: Ended) -> None:
    assert ended.codes[4] == 0
    data = (ended.folder / "stdout").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("PNG", (64, 64))
    assert data.endswith(b"IEND\xaeB`\x82")  # and nothing after it
    assert "wrote /dev/stdout" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("stdout", ["gone", "full", "own"])
def test_F8_G4_every_command_writes_its_files(tmp_path: Path, stdout: str) -> None:
    ended = run(filled(tmp_path), *((stdout, arguments) for arguments, _ in COMMANDS.values()))
    assert ended.codes == [2 if stdout == "full" else 0] * len(COMMANDS), ended.err
    assert all(file is None or (tmp_path / file).stat().st_size > 0 for _, file in COMMANDS.values())
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_G4_a_report_of_measurements_is_written_whole(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = str(next((ROOT / "benchmarks" / "results").glob("cpu-*.json")))
    assert run(tmp_path, ("gone", ["bench", "report", results, "--out", "report"])).codes == [0]
    assert (tmp_path / "report" / "index.html").stat().st_size > 0


def test_G4_a_pipe_of_the_shell() -> None:
    """Nothing more may come at the process's own end, when Python flushes what is left."""
    line = f"{sys.executable} -m hqtvae_fast.cli --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")

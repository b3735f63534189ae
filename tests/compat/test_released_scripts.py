"""The released repository's own scripts, as they are, on golden checkpoints and a CPU: with top-k 1 they write the
codes' pixels that the released implementation gives."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import GOLDEN, golden_values

ROOT = Path(__file__).parents[2]
RELEASED = os.environ.get("HQTVAE_RELEASED")
pytestmark = [
    pytest.mark.released,
    pytest.mark.skipif(RELEASED is None, reason="HQTVAE_RELEASED names no checkout of the released implementation"),
]
if RELEASED is not None:
    pytest.importorskip("omegaconf", reason="the released scripts need omegaconf")
    pytest.importorskip("einops", reason="the released scripts need einops")

SIDES = ["--top-resolution", "4", "--bot-resolution", "8"]
ONE_PIXEL = 1e-4


def run(folder, *arguments, dtype="fp32"):
    """In an empty folder: the checkout is found by the script's path, and nothing is written there."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "hqtvae_fast.compat", "--dtype", dtype, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def script(name):
    return Path(RELEASED) / name


def changed(case, folder, change):
    """A golden checkpoint with another configuration."""
    shutil.copytree(GOLDEN / case, folder / case)
    file = folder / case / "config.yaml"
    config = yaml.safe_load(file.read_text())
    change(config["stage2"])
    file.write_text(yaml.safe_dump(config))
    return folder / case


def pixels(file):
    return pickle.loads(file.read_bytes())


@pytest.mark.parametrize("batch", [1, 3])
def test_sampling(tmp_path, batch):
    """It asks for more classes than there are, so that few pictures of each are drawn: an error ends it."""
    model = GOLDEN / "class_parallel"
    classes = 50_000 // batch
    done = run(
        tmp_path, script("sampling_hqmodel.py"), "-r", "out", "-m", model, "--top-k", 1, *SIDES,
        "--batch-size", batch, "--num-classes", classes,
    )  # fmt: skip
    golden = golden_values("class_parallel")
    drawn = pixels(tmp_path / "out" / f"samples_({int(golden['greedy_label']) + 1}_0).pkl")
    assert drawn.shape == (batch, 3, 64, 64)
    assert np.abs(drawn - golden["greedy_pixels"][:batch].numpy()).max() < ONE_PIXEL
    said, trace = done.stderr.split("Traceback (most recent call last):\n")
    assert said.count("hqtvae_fast stands in for") == 1
    assert "sampling_hqmodel.py" in trace.splitlines()[0]
    assert trace.splitlines()[-1] == "ValueError: cond: expected a class label from 0 to 9; got 10"
    assert done.returncode == 1


def test_three_levels(tmp_path):
    model = GOLDEN / "class_level3"
    done = run(
        tmp_path, script("sampling_hqmodel.py"), "-r", "out", "-m", model, "--top-k", 1, *SIDES,
        "--batch-size", 3, "--num-classes", 15_000, "--code-level", 3,
    )  # fmt: skip
    assert "got 10" in done.stderr.splitlines()[-1]
    golden = golden_values("class_level3")
    from conftest import golden_pipeline

    maps = [golden[f"greedy_{level}"].view(3, 4, 4, side, side) for level, side in enumerate((1, 2, 4))]
    maps = [level.transpose(2, 3).reshape(3, 4 * level.shape[-1], -1) for level in maps]
    expected = golden_pipeline("class_level3").decode(maps, "np")
    drawn = pixels(tmp_path / "out" / f"samples_({int(golden['greedy_label']) + 1}_0).pkl")
    assert np.abs(drawn.transpose(0, 2, 3, 1) - np.asarray(expected)).max() < ONE_PIXEL


def text_model(folder):
    return changed("text_parallel", folder, lambda stage2: stage2.update(weight_txt=1.0, weight_img=0.9))


def test_text(tmp_path):
    """Its tokenizer's vocabulary is larger than the golden model's: a script of one's own gives the tokens."""
    model, golden = text_model(tmp_path), golden_values("text_parallel")
    own = tmp_path / "own.py"
    own.write_text(
        f"import sys, runpy, torch\nsys.path.insert(0, {RELEASED!r})\nimport hqvae.datasets as data\n"
        "class Few(list):\n    pass\n"
        f"tokens = torch.tensor({golden['text'].tolist()})\n"
        "data.CC3MTextOnly = lambda **options: Few([(0, row) for row in tokens])\n"
        f"runpy.run_path({str(script('sampling_hqmodel_txt2img.py'))!r}, run_name='__main__')\n"
    )
    done = run(tmp_path, own, "-r", "out", "-m", model, "--top-k", 1, *SIDES, "--batch_size", len(golden["text"]))
    assert done.returncode == 0, done.stderr
    drawn = pixels(tmp_path / "out" / f"samples_(1_{len(golden['text'])}).pkl")
    assert np.abs(drawn - golden["greedy_pixels"].numpy()).max() < ONE_PIXEL


@pytest.mark.parametrize("inside", [False, True])
def test_throughput(tmp_path, inside):
    """By its folder from anywhere, and as a module from inside the checkout."""
    model = changed("class_parallel", tmp_path, lambda stage2: stage2["hparams"].update(n_classes=1000))
    arguments = [f"model_path={model}/config.yaml", "batch_size=1000", "top_resolution=4", "n_loop=1", "warmup=0"]
    target = ("-m", "measure_throughput") if inside else (script("measure_throughput"),)
    done = run(RELEASED if inside else tmp_path, *target, *arguments, dtype="bf16")
    assert done.returncode == 0, done.stderr
    assert "ms/sample (ar:" in done.stdout


def test_throughput_of_text_as_a_module(tmp_path):
    """With captions where it looks for them, and its own tokenizer."""
    model = text_model(tmp_path)
    file = model / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["stage2"]["vocab_size_txt"] = 16384
    config["dataset"]["context_length"] = config["stage2"]["hparams"]["ctx_len_txt"]
    file.write_text(yaml.safe_dump(config))
    captions = tmp_path / "val_list.txt"
    captions.write_text("picture.jpg\ta red apple on a table\n" * 6)
    own = tmp_path / "own.py"
    own.write_text(
        f"import sys, runpy\nsys.path.insert(0, {RELEASED!r})\nimport hqvae.datasets as data\n"
        f"data.ROOT_DIR_CC3M = {str(tmp_path)!r}\n"
        "runpy.run_module('measure_throughput_txt', run_name='__main__')\n"
    )
    done = run(
        tmp_path, own, f"model_path={model}", "batch_size=3", "top_resolution=4", "bot_resolution=8", "n_loop=1",
        "warmup=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ms/sample (ar:" in done.stdout


def test_a_checkpoint_that_asks_for_more_is_refused(tmp_path):
    shutil.copytree(GOLDEN / "class_parallel", tmp_path / "model")
    (tmp_path / "model" / "ckpt" / "last.ckpt").write_bytes(pickle.dumps({"state_dict": Path("/")}))
    done = run(tmp_path, script("sampling_hqmodel.py"), "-r", "out", "-m", "model", "--top-k", 1)
    assert done.returncode == 1
    assert "sampling_hqmodel.py" in done.stderr
    assert "UnpicklingError" in done.stderr

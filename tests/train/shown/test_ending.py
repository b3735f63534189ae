"""What is said when a run ends: where the model is, how good it is, what to look at and what to run next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from hqtvae_fast.checkpoint_config import FORMAT, FORMAT_VERSION
from hqtvae_fast.classes import Classes
from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, VAEConfig, to_dict
from hqtvae_fast.run_folder import REPORT
from hqtvae_fast.train.shown.ending import end_lines, next_command


def write_model(folder: Path, classes: tuple[str | None, ...] = (), condition: str | None = "class") -> Path:
    stage2 = None
    if condition is not None:
        stage2 = TransformerConfig(condition=condition, num_classes=max(len(classes), 1))
    folder.mkdir(parents=True)
    config = HQTVAEConfig(vae=VAEConfig(), transformer=stage2, id2label=classes)
    written = {"format": FORMAT, "version": FORMAT_VERSION, **to_dict(config)}
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def write_stage(folder: Path, **held_out: float) -> Path:
    (folder / "pictures").mkdir(parents=True)
    for step in (10, 20):
        (folder / "pictures" / f"{step:07d}.png").write_bytes(b"")
    records = [{"step": 20, "loss": 0.5, "psnr": 25.0, **{f"val_{name}": value for name, value in held_out.items()}}]
    (folder / "losses.jsonl").write_text(json.dumps(records[0]) + "\n")
    return folder


def test_a_whole_run(tmp_path):
    run = tmp_path / "mine"
    write_model(run / "model", ("cat", None, "food"))
    stages = {"stage 1": write_stage(run / "stage1", psnr=21.34, usage_0=0.83, usage_1=0.61)}
    stages["stage 2"] = write_stage(run / "stage2", loss=4.0, level_0=2.0, level_1=3.0)
    (run / REPORT).write_text("")
    assert end_lines(run, stages) == [
        f"finished: {run / 'model'}",
        "stage 1, held out: PSNR 21.3 dB, codes in use: 83% top, 61% bottom",
        "stage 2, held out: loss 4, nats a code: 2.00 top, 3.00 bottom",
        f"to look at: {run / REPORT}, {run / 'stage2' / 'pictures' / '0000020.png'}",
        f"next: hqtvae sample {run} --classes cat,food",
    ]


def test_without_held_out_pictures_training_s_figures_are_told_as_such(tmp_path):
    write_model(tmp_path / "model", condition=None)
    lines = end_lines(tmp_path, {"stage 1": write_stage(tmp_path)}, data=["my pictures/"])
    assert lines[1:3] == [
        "stage 1, training: loss 0.5, PSNR 25.0 dB",
        f"to look at: {tmp_path / 'pictures' / '0000020.png'}",
    ]
    assert lines[3] == f"next: hqtvae train stage2 --data 'my pictures/' --vae {tmp_path} --out {tmp_path}-stage2"


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "food"),
        ("hot dog", "cat, black", 'so-called "dog"', "x"),
        ("'s", "5-7", "5", "$HOME"),
        (None, "ice cream, with 'cream'"),
        tuple(f"name {label}" for label in range(100)),
    ],
)
def test_the_command_is_read_as_it_is_meant(tmp_path, names):
    write_model(tmp_path / "model", names)
    words = shlex.split(next_command(tmp_path))
    assert words[:4] == ["hqtvae", "sample", str(tmp_path), "--classes"]
    trained = [label for label, name in enumerate(names) if name is not None]
    assert Classes(len(names), names).parse("--classes", words[4:]) == trained[:3]


def test_of_other_models(tmp_path):
    write_model(tmp_path / "text" / "model", condition="text")
    command = next_command(tmp_path / "text", example="a fox's den")
    assert shlex.split(command) == ["hqtvae", "sample", str(tmp_path / "text"), "--prompt", "a fox's den"]
    write_model(tmp_path / "none" / "model", condition="none")
    assert next_command(tmp_path / "none") == f"hqtvae sample {tmp_path / 'none'} --num-images 8"
    write_model(tmp_path / "numbers" / "model")
    assert next_command(tmp_path / "numbers") == f"hqtvae sample {tmp_path / 'numbers'} --classes 0"

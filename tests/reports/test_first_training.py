"""What a newcomer to training met: a folder of few pictures, classes without names, a checkpoint to fine-tune, an end
in silence."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="training needs the train extra")

import numpy as np
from PIL import Image

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.cli import main
from hqtvae_fast.train.loop.records import read_records

QUICK = ("--steps", "2", "--batch-size", "2", "--resolution", "32")
CLASSES = ("cat", "dog", "hot dog")


def write_pictures(root: Path, folders: tuple[str, ...] = ("",), each: int = 6) -> Path:
    noise = np.random.default_rng(0)
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            array = noise.integers(0, 90, (40, 36, 3)) + 60 * place
            Image.fromarray(array.astype(np.uint8)).save(root / folder / f"{place}-{index}.png")
    return root


def hqtvae(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that succeeds says on both streams."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out + said.err


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run on three class folders, and what it said."""
    root, said = tmp_path_factory.mktemp("trained"), io.StringIO()
    pictures = write_pictures(root / "pictures", CLASSES)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(["train", str(pictures), "--out", str(root / "run"), *QUICK]) == 0, said.getvalue()
    return root / "run", said.getvalue()


@pytest.fixture(scope="module")
def trained(training: tuple[Path, str]) -> Path:
    return training[0]


# -------------------------------------------------------------------------------------------------- T1: few pictures


def test_T1_fifty_nine_pictures_and_no_option(tmp_path, capsys):
    """The model, the batch and how long are picked to fit, and said; nothing is a batch of 128 of a 90 M model."""
    said = hqtvae(capsys, "train", "stage1", "--data", write_pictures(tmp_path / "set", each=59), "--out",
                  tmp_path / "run", "--steps", 1, "--resolution", 32)  # fmt: skip
    assert "54 pictures, 5 held out" in said
    assert "expected pictures for at least one batch" not in said
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["size"] == "tiny"
    assert run["batch_size"] == 16
    assert sum(value.numel() for value in HQTVAEPipeline.from_pretrained(tmp_path / "run").vae.parameters()) < 3e6


@pytest.mark.slow
def test_T1_captions_need_no_configuration(tmp_path, capsys):
    pictures = write_pictures(tmp_path / "set", each=12)
    captions = {file.name: f"picture number {index}" for index, file in enumerate(sorted(pictures.iterdir()))}
    (pictures / "captions.json").write_text(json.dumps(captions))
    said = hqtvae(capsys, "train", pictures, "--out", tmp_path / "run", *QUICK)
    config = read_config(tmp_path / "run").transformer
    assert config.condition == "text"
    assert config.prefix_vocab_size < 100
    assert config.prefix_length == 24 or config.prefix_length < 24
    assert "hqtvae sample" in said
    assert "--prompt 'picture number" in said


def test_T1_every_size_is_named_in_the_help(capsys):
    said = " ".join(hqtvae(capsys, "train", "both", "--help").split())
    for word in ("tiny", "small", "paper", "--resolution", "--batch-size", "--steps", "--epochs", "--save-every"):
        assert word in said


# ------------------------------------------------------------------------------------------------------- T2: classes


def test_T2_three_folders_are_three_classes_with_names(trained, tmp_path, capsys):
    config = read_config(trained)
    assert config.transformer.num_classes == 3
    assert config.id2label == CLASSES
    assert json.loads((trained / "model" / "config.json").read_text())["id2label"] == {
        "0": "cat", "1": "dog", "2": "hot dog",
    }  # fmt: skip
    out = tmp_path / "drawn"
    hqtvae(capsys, "sample", trained, "--classes", "hot dog,cat", "--out-dir", out)
    assert sorted(file.name for file in out.iterdir()) == ["cat-0000.png", "hot-dog-0000.png"]


def test_T2_no_class_beyond_the_data_is_drawn(trained, capsys):
    assert main(["sample", str(trained), "--classes", "0-9"]) == 2
    assert "expected" in (said := capsys.readouterr().err)
    assert "cat, dog, hot dog" in said or "0 to 2" in said


def test_T2_shards_hold_the_trained_classes(trained, tmp_path, capsys):
    hqtvae(capsys, "sample", trained, "--num-images", "6", "--shards", tmp_path / "shards", "--batch-size", "3")
    spec = (tmp_path / "shards" / "samples.json").read_text()
    assert "hot dog" in spec or "2" in spec


# ---------------------------------------------------------------------------------------------------- T3: fine-tuning


def test_T3_the_demo_can_be_trained_on(tmp_path, capsys):
    """Its architecture is taken over: nothing of the run's own, and no other size, is asked for."""
    pictures = write_pictures(tmp_path / "set", each=12)
    captions = {file.name: "red apple, 3d" for file in sorted(pictures.iterdir())}
    (pictures / "captions.json").write_text(json.dumps(captions))
    said = hqtvae(capsys, "train", pictures, "--init", "demo", "--out", tmp_path / "run", "--steps", 1)
    assert "init demo: " in said
    found, demo = read_config(tmp_path / "run"), read_config("demo")
    assert found.vae == demo.vae
    assert found.transformer.dim == demo.transformer.dim
    assert found.transformer.prefix_vocab_size == demo.transformer.prefix_vocab_size


# ---------------------------------------------------------------------------------------------------------- T4: ends


def test_T4_the_end_says_where_how_good_and_what_next(training):
    run, said = training
    assert f"finished: {run / 'model'}" in said
    assert "PSNR" in said
    assert "codes in use" in said
    assert str(run / "report.html") in said
    assert f"next: hqtvae sample {run} --classes" in said
    assert "level_0" not in said
    assert "none broken" not in said
    page = (run / "report.html").read_text()
    assert page.count("<img") >= 2  # sheets of both stages


def paths_of(run: Path) -> list[Path]:
    """All that is a model in a run's folder."""
    checkpoints = [path for stage in ("stage1", "stage2") for path in (run / stage / "checkpoints").iterdir()]
    return [run, run / "model", run / "stage1", run / "stage2", run / "stage2" / "model", *checkpoints]


def test_T4_every_folder_of_a_run_is_a_model(trained, tmp_path, capsys):
    image = next((trained.parent / "pictures" / "cat").iterdir())
    for index, path in enumerate(paths_of(trained)):
        hqtvae(capsys, "reconstruct", path, image, "--out", tmp_path / f"{index}.png")
        if read_config(path).transformer is not None:
            hqtvae(capsys, "sample", path, "--classes", "dog", "--out", tmp_path / f"drawn-{index}.png")
            assert (tmp_path / f"drawn-{index}.png").is_file()
        assert (tmp_path / f"{index}.png").is_file()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_T4_a_run_that_was_stopped_is_a_model_too(trained, tmp_path, capsys, stage):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / stage / "model")
    if stage == "stage1":
        shutil.rmtree(run / "stage2")
    said = hqtvae(capsys, "reconstruct", run, next((trained.parent / "pictures" / "cat").iterdir()), "--out",
                  tmp_path / "rebuilt.png")  # fmt: skip
    assert f"not finished; opening {stage}/checkpoints/step-0000002" in said


@pytest.mark.slow
def test_T4_stage_2_takes_a_runs_folder(trained, tmp_path, capsys):
    pictures = trained.parent / "pictures"
    for path in (trained, trained / "stage1"):
        out = tmp_path / path.name
        hqtvae(capsys, "train", "stage2", "--data", pictures, "--vae", path, "--out", out, "--steps", 1,
               "--batch-size", 2, "--size", "tiny")  # fmt: skip
        assert (out / "model" / "model.safetensors").is_file()


def test_T4_records_tell_epoch_rate_and_seconds(trained):
    for stage in ("stage1", "stage2"):
        records, broken = read_records(trained / stage / "losses.jsonl")
        assert broken == 0
        assert {"step", "epoch", "learning_rate", "seconds"} <= set(records[-1])


def test_T4_losses_are_a_figure(trained, tmp_path, capsys):
    hqtvae(capsys, "figure", "losses", trained, "--out", tmp_path / "losses.png")
    with Image.open(io.BytesIO((tmp_path / "losses.png").read_bytes())) as picture:
        assert np.asarray(picture.convert("L")).std() > 1


def test_T4_a_run_that_goes_on_says_what_changed_and_refuses_what_cannot(tmp_path, capsys):
    pictures = write_pictures(tmp_path / "set", CLASSES)
    common = ("train", "stage1", "--data", pictures, "--out", tmp_path / "run", "--resolution", 32)
    hqtvae(capsys, *common, "--steps", 4, "--batch-size", 2, "--stop-after", 1)
    said = hqtvae(capsys, *common, "--steps", 4, "--batch-size", 4, "--learning-rate", "1e-5", "--stop-after", 1)
    assert "batch_size: 4, was 2" in said
    assert "learning_rate: 1e-05, was" in said
    assert main([str(word) for word in (*common[:-1], 64, "--steps", 4)]) == 2
    assert "--out" in capsys.readouterr().err

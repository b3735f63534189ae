"""Presets: all of them parse, build and have the paper's sizes; what lies on top of what; prior and refiner as one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import VAE

from hqtvae_fast import HQTVAEPipeline, checkpoint
from hqtvae_fast.cli import main
from hqtvae_fast.config import PRESETS, ConfigError, VAEConfig
from hqtvae_fast.model import cost
from hqtvae_fast.train import presets
from hqtvae_fast.train.config import Stage1Run, Stage2Run, read_run
from hqtvae_fast.train.presets import STAGES, load_preset, preset_names
from hqtvae_fast.train.run import train_stage1, train_stage2
from hqtvae_fast.train.sizing.models import make_transformer_config, preset_config

ALL = [(stage, name) for stage in STAGES for name in preset_names(stage)]
RUNS = {"stage1": Stage1Run, "stage2": Stage2Run}
USER = {"stage1": {"data": ["pictures"], "out": "run"}, "stage2": {"data": ["pictures"], "out": "run", "vae": "vae"}}
# In millions. Table 1 says 530 M, 870 M and 1.4 B; table 5's other policies are of S.
SIZES = {"S": 530.8, "M": 870.7, "L": 1437.4, "S-onehot": 530.8, "S-sequential": 530.8, "S-bidirectional": 530.8}


def read(stage, name=None, file=None, **flags):
    return read_run(RUNS[stage], file, {**USER[stage], **flags}, name)


# -------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("stage, name", ALL)
def test_every_preset_is_a_run(stage, name):
    preset, run = load_preset(stage, name), read(stage, name)
    assert preset.source
    assert preset.description
    assert set(preset.fields) >= {"batch_size", "epochs", "learning_rate", "warmup_epochs", "model"}
    assert not set(preset.fields) & {"data", "out", "vae", "prior", "seed"}
    for field, value in preset.fields.items():
        if isinstance(value, list):
            value = tuple(value)
        assert getattr(run, field) == value
    assert isinstance(run.learning_rate, float)  # YAML reads 4e-5, without a point, as text


@pytest.mark.parametrize("stage, name", ALL)
def test_every_preset_builds(stage, name):
    with torch.device("meta"):
        made = checkpoint.build(preset_config(load_preset(stage, name)))
    assert (made.transformer is None) == (stage == "stage1")


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_the_paper(name):
    sizes = cost.parameters(preset_config(load_preset("stage2", name)))
    total = sum(count for part, count in sizes.items() if part.startswith("transformer."))
    assert round(total / 1e6, 1) == SIZES[name]


@pytest.mark.parametrize("name", PRESETS)
def test_they_agree_with_the_models_presets(name):
    assert preset_config(load_preset("stage2", name)) == PRESETS[name]


@pytest.mark.parametrize(
    "stage, name, sides",
    [
        ("stage1", "imagenet", (8, 16)),
        ("stage1", "imagenet-top4", (4, 8)),
        ("stage1", "imagenet-top16", (16, 32)),
        ("stage1", "imagenet-3level", (8, 16, 32)),
        ("stage1", "imagenet-3level-top4", (4, 8, 16)),
        ("stage2", "S-top4", (4, 8)),
        ("stage2", "S-3level", (8, 16, 32)),
        ("stage2", "S-3level-top4", (4, 8, 16)),
    ],
)
def test_code_maps_of_tables_3_and_6(stage, name, sides):
    assert preset_config(load_preset(stage, name)).vae.level_sides == sides


def test_the_halves_of_global_conditioning_make_a_pair():
    with torch.device("meta"):
        prior, refiner = (
            checkpoint.build(preset_config(load_preset("stage2", f"global-{half}"))) for half in ("prior", "refiner")
        )
        joined = checkpoint.with_refiner(prior, refiner).config
    assert joined.refiner.side == 16
    assert joined.refiner.prefix_length == joined.transformer.num_steps == 64


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"expected one of FFHQ, L, M, S, .* for stage2; got 'XL'"):
        read("stage2", "XL")
    with pytest.raises(ConfigError, match=r"expected one of ffhq, imagenet, .* for stage1; got 'S'"):
        read("stage1", "S")


def test_a_preset_for_codes_of_another_shape():
    with pytest.raises(ConfigError, match=r"codebook_sizes: expected the VAE's \(8192, 8192\)"):
        make_transformer_config(load_preset("stage2", "S-3level").fields["model"], VAEConfig())
    three = preset_config(load_preset("stage1", "imagenet-3level")).vae
    with pytest.raises(ConfigError, match="all of its levels; got"):
        make_transformer_config({"codebook_sizes": [8192, 8192]}, three)


# --------------------------------------------------------------------------------------------------------- precedence


def test_file_lies_on_preset_and_flags_on_both(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: 64\nlearning_rate: 1.0e-3\nmodel: {dim: 768, body: {num_layers: 2}}\n")
    run, preset = read("stage2", "M", file, batch_size=32), read("stage2", "M")
    assert (run.batch_size, run.learning_rate, run.epochs) == (32, 1e-3, preset.epochs)
    assert run.model == {**preset.model, "dim": 768, "body": {**preset.model["body"], "num_layers": 2}}
    assert preset.batch_size == 512


@pytest.mark.parametrize("where", ["flags", "file"])
def test_steps_stand_for_a_presets_epochs(tmp_path, where):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"steps": 7}))
    run = read("stage1", "imagenet", file) if where == "file" else read("stage1", "imagenet", steps=7)
    assert (run.steps, run.epochs) == (7, None)


def test_a_file_can_take_a_field_back(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("soft_labels: null")
    assert read("stage2", "S-onehot", file).tau == read("stage2", "S").tau == 1.0
    assert read("stage2", "S-onehot").tau is None


def test_an_unknown_field_of_a_preset_names_it(monkeypatch):
    broken = presets.Preset("stage1", "broken", "", "", {"batchsize": 3})
    monkeypatch.setattr("hqtvae_fast.train.config.load_preset", lambda stage, name: broken)
    with pytest.raises(ConfigError, match="preset broken: unknown field batchsize; expected some of"):
        read("stage1", "broken")


@pytest.mark.parametrize("field, value", [("top_only", "some"), ("schedule", "linear")])
def test_choices_of_stage1(field, value):
    with pytest.raises(ConfigError, match=rf"{field}: expected one of .*; got '{value}'"):
        read("stage1", "imagenet", **{field: value})


# ------------------------------------------------------------------------------------------------------- command line


def test_the_command_lists_all(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["train", "presets"]) == 0
    out = capsys.readouterr().out
    for _, name in ALL:
        assert f" {name} " in out
    assert "1,437.4 M" in out


def test_the_command_takes_a_preset(capsys, monkeypatch):
    runs = []
    monkeypatch.setattr("hqtvae_fast.train.run.train_stage2", lambda run, again: runs.append(run))
    flags = ["--preset", "global-refiner", "--prior", "runs/prior/model", "--data", "x", "--out", "y", "--steps", "3"]
    assert main(["train", "stage2", *flags]) == 0
    (run,) = runs
    assert (run.prior, run.vae, run.steps, run.epochs) == ("runs/prior/model", "", 3, None)
    assert run.model["condition"] == "codes"
    assert main(["train", "stage1", "--preset", "none such", "--data", "x", "--out", "y"]) == 2
    assert "expected one of ffhq, imagenet" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- runs

BLOCKS = {"num_layers": 1, "num_heads": 2}
TINY = {"dim": 32, "body": BLOCKS, "head": BLOCKS}
COMMON = {"batch_size": 4, "workers": 0, "log_every": 1, "picture_every": 0, "save_every": 0, "steps": 4}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(8):
        (root / str(index % 2)).mkdir(exist_ok=True)
        array = noise.integers(0, 255, (16, 16, 3))
        Image.fromarray(array.astype(np.uint8)).save(root / str(index % 2) / f"{index}.png")
    return root


def stage1(pictures, out, preset, **changes) -> Path:
    fields = {**COMMON, "data": str(pictures), "out": str(out), "model": VAE, "discriminator_channels": 32, **changes}
    train_stage1(read_run(Stage1Run, None, fields, preset))
    return out / "model"


def stage2(pictures, out, preset, **changes) -> Path:
    fields = {**COMMON, "data": str(pictures), "out": str(out), **changes}
    train_stage2(read_run(Stage2Run, None, fields, preset))
    return out / "model"


def losses(model: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (model.parent / "losses.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def vae(pictures, tmp_path_factory) -> Path:
    return stage1(pictures, tmp_path_factory.mktemp("vae"), "imagenet")


@pytest.fixture(scope="module")
def prior(pictures, vae, tmp_path_factory) -> Path:
    model = {**TINY, "num_classes": 2}
    return stage2(pictures, tmp_path_factory.mktemp("prior"), "global-prior", vae=str(vae), model=model)


def test_prior_and_refiner_draw_as_one(pictures, prior, tmp_path):
    model = stage2(pictures, tmp_path / "refiner", "global-refiner", prior=str(prior), model=TINY)
    pipe = HQTVAEPipeline.from_pretrained(model, device="cpu", dtype="fp32")
    drawn = pipe([0, 1], output_type="pt", progress=False)
    assert drawn.images.shape == (2, 3, 16, 16)
    assert [level.shape for level in drawn.codes] == [(2, 2, 2), (2, 4, 4)]
    alone = checkpoint.load(prior).transformer.state_dict()
    assert all(torch.equal(value, alone[key]) for key, value in checkpoint.load(model).transformer.state_dict().items())


def test_a_refiner_alone_can_be_joined_later(pictures, vae, prior, tmp_path, capsys):
    half = stage2(pictures, tmp_path / "refiner", "global-refiner", vae=str(vae), model=TINY)
    assert "half a model; hqtvae convert joins the halves" in capsys.readouterr().err
    assert main(["convert", str(prior), str(tmp_path / "whole"), "--refiner", str(half)]) == 0
    pipe = HQTVAEPipeline.from_pretrained(tmp_path / "whole", device="cpu")
    assert len(pipe(1, progress=False).images) == 1


def test_priors_that_make_no_pair(pictures, vae, prior, tmp_path):
    def refine(message, **changes):
        with pytest.raises(ConfigError, match=message):
            stage2(pictures, tmp_path / "out", "global-refiner", **{"model": TINY, **changes})

    refine("prior: expected a checkpoint with a prior over top codes; got .*, with stage 1 only", prior=str(vae))
    refine("prior: expected a refiner to train", prior=str(prior), model={**TINY, "condition": "none"})
    other = stage1(pictures, tmp_path / "vae", "imagenet", seed=1)
    refine("prior: expected a model of the codes of vae", prior=str(prior), vae=str(other))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["imagenet-conv", "imagenet-conv-pixels", "imagenet-conv-residual"])
def test_losses_that_keep_top_codes_in_use(pictures, tmp_path, preset):
    changes = {"steps": 30, "learning_rate": 1e-3, "schedule": "constant", "restart_unused": True}
    rows = losses(stage1(pictures, tmp_path, preset, **changes))
    assert rows[-1]["mse"] < rows[0]["mse"]


def test_the_weights_of_a_run_reach_its_loss(pictures, vae, tmp_path):
    model = {**TINY, "num_classes": 2}
    weights = {"level_weights": [2.0, 0.5], "soft_labels": 0}
    (row, *_) = losses(stage2(pictures, tmp_path, "S", vae=str(vae), model=model, **weights))
    assert row["loss"] == pytest.approx(2 * row["level_0"] + 0.5 * row["level_1"], rel=1e-5)

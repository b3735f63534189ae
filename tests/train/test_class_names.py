"""From folders of pictures to a model that knows its classes by name."""

from __future__ import annotations

import shutil

import pytest
from small_runs import TRANSFORMER, stage1, stage2, write_pictures

from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.classes import fit_names
from hqtvae_fast.cli import main
from hqtvae_fast.config import ConfigError
from hqtvae_fast.train.run import train_stage1, train_stage2

QUIET = {"steps": 1, "save_every": 1, "validate_every": 0}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """Stage 1, and the pictures of three classes, one of which stage 2 may leave out."""
    folder = tmp_path_factory.mktemp("named")
    pictures = write_pictures(folder / "pictures")
    shutil.copytree(pictures / "bright", pictures / "night, rain")
    train_stage1(stage1(pictures, folder / "vae", **QUIET))
    return pictures, folder / "vae" / "model"


def test_a_model_of_folders_is_asked_for_by_their_names(vae, tmp_path, capsys):
    model = {name: value for name, value in TRANSFORMER.items() if name != "num_classes"}
    train_stage2(stage2(*vae, tmp_path / "hqt", **QUIET, model=model))
    config = read_config(tmp_path / "hqt" / "model")
    assert (config.transformer.num_classes, config.id2label) == (3, ("bright", "dark", "night, rain"))
    assert not (tmp_path / "hqt" / "class_names.json").exists()
    sample = ["sample", str(tmp_path / "hqt" / "model"), "--out-dir", str(tmp_path / "drawn"), "--classes"]
    assert main([*sample, '"night, rain",dark']) == 0
    assert sorted(file.stem for file in (tmp_path / "drawn").iterdir()) == ["dark-0000", "night-rain-0000"]
    assert main([*sample, "Bright"]) == 2
    assert "close to it: 'bright'" in capsys.readouterr().err


def test_classes_that_a_run_leaves_out_have_no_name(vae, tmp_path):
    model = {**TRANSFORMER, "num_classes": 5}
    run = stage2(*vae, tmp_path / "hqt", **QUIET, model=model, select={"class_name": ["bright", "night, rain"]})
    train_stage2(run)
    assert read_config(tmp_path / "hqt" / "model").id2label == ("bright", None, "night, rain", None, None)


def test_a_model_of_fewer_classes_than_the_pictures_have_is_refused_before_it_is_trained(vae, tmp_path):
    with pytest.raises(ConfigError, match=r"model.num_classes: expected 3 or more, for the data; got 2"):
        train_stage2(stage2(*vae, tmp_path / "hqt", **QUIET))
    assert not (tmp_path / "hqt" / "losses.jsonl").exists()


def test_names_of_pictures_become_those_of_a_model():
    assert fit_names(("cat", None), 4) == ("cat", None, None, None)
    assert fit_names((None, None), 3) == fit_names((), 3) == ()

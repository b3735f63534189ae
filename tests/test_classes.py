"""The names of classes: kept in a model's configuration, read and shown wherever a class is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from hqtvae_fast import checkpoint
from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.config import (
    BlocksConfig,
    CheckpointError,
    ConfigError,
    HQTVAEConfig,
    TransformerConfig,
    VAEConfig,
    from_dict,
    to_dict,
)

BLOCK = BlocksConfig(num_layers=1, num_heads=2)
VAE = VAEConfig(
    resolution=16,
    channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    attention_resolutions=(),
    latent_channels=8,
    embed_dim=8,
    codebook_sizes=(16, 16),
)
CLASSES = TransformerConfig(
    codebook_sizes=(16, 16), side=2, dim=16, body=BLOCK, head=BLOCK, num_classes=4, max_positions=4
)
NAMES = ("cat", "hot dog", None, "tench, Tinca tinca")
NAMED = HQTVAEConfig(VAE, CLASSES, id2label=NAMES)


def as_given(**changes):
    return {**to_dict(NAMED), **changes}


# ------------------------------------------------------------------------------------------------- in the configuration


def test_names_are_a_mapping_by_label_without_the_classes_that_had_no_pictures():
    assert to_dict(NAMED)["id2label"] == {"0": "cat", "1": "hot dog", "3": "tench, Tinca tinca"}
    assert from_dict(to_dict(NAMED)) == NAMED


def test_a_model_whose_classes_have_no_names_is_written_as_before():
    unnamed = HQTVAEConfig(VAE, CLASSES)
    assert unnamed.id2label == ()
    assert "id2label" not in to_dict(unnamed)
    assert from_dict(to_dict(unnamed)) == unnamed
    assert from_dict(as_given(id2label={})) == unnamed


def test_names_do_not_tell_weights_apart():
    assert repr(NAMED) == repr(HQTVAEConfig(VAE, CLASSES))


@pytest.mark.parametrize(
    "names, message",
    [
        ({"4": "owl"}, "id2label: expected labels from 0 to 3; got '4'"),
        ({"-1": "owl"}, "id2label: expected labels from 0 to 3; got '-1'"),
        ({"٣": "owl"}, "id2label: expected labels from 0 to 3; got '٣'"),
        ({"cat": "0"}, "id2label: expected labels from 0 to 3; got 'cat'"),
        ({"0": 1}, "id2label.0: expected text; got 1"),
        ({"0": None}, "id2label.0: expected text; got None"),
        ({"0": " "}, "id2label.0: expected a name; got ' '"),
        (["cat"], "id2label: expected a mapping; got ['cat']"),
    ],
)
def test_names_that_cannot_be_are_refused_by_field(names, message):
    with pytest.raises(ConfigError) as error:
        from_dict(as_given(id2label=names))
    assert str(error.value) == message


def test_there_are_as_many_names_as_classes_and_none_without_classes():
    with pytest.raises(ConfigError, match=r"id2label: expected 4 names, one a class; got 1"):
        HQTVAEConfig(VAE, CLASSES, id2label=("cat",))
    with pytest.raises(ConfigError, match=r"id2label: expected none, as this model is not drawn from classes; got 4"):
        HQTVAEConfig(VAE, replace(CLASSES, condition="none"), id2label=NAMES)
    with pytest.raises(ConfigError, match=r"id2label: expected none, as this model is not drawn from classes; got 4"):
        HQTVAEConfig(VAE, None, id2label=NAMES)
    with pytest.raises(ConfigError, match=r"id2label: expected a name of some class; got none"):
        HQTVAEConfig(VAE, CLASSES, id2label=(None,) * 4)


def test_a_checkpoint_keeps_its_names_readable_by_people(tmp_path):
    named = replace(NAMED, id2label=("Füchse", "hot dog", None, "caf\udce9"))
    checkpoint.save(checkpoint.build(named), tmp_path)
    assert '"0": "Füchse"' in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert read_config(tmp_path).id2label == ("Füchse", "hot dog", None, "caf\\xe9")
    assert checkpoint.load(tmp_path).config == read_config(tmp_path)


def test_a_checkpoint_with_names_for_other_classes_is_refused_by_file_and_field(tmp_path):
    shutil.copyfile(checkpoint.DEMO_DIRECTORY / "config.json", tmp_path / "config.json")
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, "id2label": {"0": "cat"}}))
    with pytest.raises(CheckpointError, match=r"config\.json: id2label: expected none, as this model"):
        read_config(tmp_path)

"""Configurations edited by hand: each is a right model, or an error that names the file and the field."""

from __future__ import annotations

import copy
import json
import math
import shutil
from functools import reduce
from pathlib import Path

import pytest
import yaml
from conftest import CASES, GOLDEN

from hqtvae_fast import checkpoint
from hqtvae_fast.checkpoint import CheckpointError
from hqtvae_fast.config import BlocksConfig, ConfigError, HQTVAEConfig, TransformerConfig, VAEConfig, from_dict, to_dict
from hqtvae_fast.evaluate.extractors.clip import load_clip

DEMO = checkpoint.DEMO_DIRECTORY
TEXT = json.loads((DEMO / "config.json").read_text())
MODEL = {name: section for name, section in TEXT.items() if name not in ("format", "version")}


def edited(data, path, value):
    data = copy.deepcopy(data)
    reduce(lambda section, key: section[key], path[:-1], data)[path[-1]] = value
    return data


REFUSED = {
    "vae.resolution": (-64, 64.0, "64", True, 0, 63, 10**9, None, [64]),
    "vae.codebook_sizes": ([1024, -1], [1024.0, 1024], [1024], "1024", None, [1024, True], 1024, [8] * 9),
    "vae.channels": (0, 33, 1e3),
    "vae.channel_multipliers": ([1, 2, -4], [], [1, 2, 4.0], [1] * 40),
    "vae.dropout": (-0.1, "0", math.nan, 2, True),
    "vae.ema_decay": (5, math.inf),
    "vae.attention_resolutions": ([-8], [8.0], 8, None),
    "vae.num_res_blocks": (0, 1.0, 10**6),
    "vae.factor": (2.0, 0),
    "vae.commitment_weight": (-1, "x", math.nan, math.inf),
    "vae.init_downsample": (1, "true", None),
    "vae.embed_dim": (64.0, 10**12),
    "transformer.dim": (192.0, -192, 10**400),
    "transformer.body.num_heads": (3.0, 0, 5),
    "transformer.body.num_layers": (7.0, -7, 10**9),
    "transformer.body.gelu": ("GELU", 1, ["exact"]),
    "transformer.body.residual_dropout": (-0.5, math.nan),
    "transformer.prefix_length": (0, -1, 16.0),
    "transformer.side": (4.0, 2),
    "transformer.num_classes": (-5, 0),
    "transformer.max_positions": (8, -1),
    "transformer.position": ("3d", None),
    "transformer.scrambled_middle": ("no", True),
    "transformer.iet_layers": (-1, 0.5),
    "version": ("1", 1.0, 2, True),
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in REFUSED.items() for value in values])
def test_G11_an_edit_that_makes_no_model_names_file_and_field(tmp_path, name, value):
    (tmp_path / "config.json").write_text(json.dumps(edited(TEXT, name.split("."), value)))
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: {name}: expected "), message
    assert len(message) < 400, "a value that came is shown in short"
    assert "; got " in message


RIGHT = {
    ("vae", "dropout"): 0,
    ("vae", "commitment_weight"): 1,
    ("transformer", "num_classes"): 7,
    ("vae", "attention_resolutions"): [8, 4096],
}


@pytest.mark.parametrize("path, value", RIGHT.items(), ids=[path[-1] for path in RIGHT])
def test_G11_an_edit_that_changes_no_weight_is_a_right_model(tmp_path, path, value):
    shutil.copyfile(DEMO / "model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(edited(TEXT, path, value)))
    config = checkpoint.load(tmp_path).config
    assert config == from_dict(edited(MODEL, path, value))


def test_G11_a_list_and_a_whole_number_are_taken_as_what_they_mean():
    config = VAEConfig(codebook_sizes=[16, 16], dropout=0)  # type: ignore[arg-type]
    assert config.codebook_sizes == (16, 16)
    assert isinstance(config.dropout, float)
    assert hash(config) == hash(VAEConfig(codebook_sizes=(16, 16)))


def test_G11_fields_that_do_not_go_together_are_named_with_their_path():
    wrong = [
        (("transformer", "side"), 2, "transformer.side: expected the VAE's 4; got 2"),
        (("transformer", "dim"), 191, "transformer.body.num_heads: expected a divisor of dim = 191; got 3"),
        (("transformer", "decoding"), "global", "transformer.codebook_sizes: expected one level with"),
        (("vae", "factor"), 3, "vae.resolution: expected a multiple of 24"),
        (("vae", "codebook_sizes"), [8, 8, 8], "vae.combine: expected 'sum' with 3 levels; got 'concat'"),
    ]
    for path, value, message in wrong:
        with pytest.raises(ConfigError) as error:
            from_dict(
                {key: data for key, data in edited(TEXT, path, value).items() if key not in ("format", "version")}
            )
        assert str(error.value).startswith(message)


def test_G11_a_refiner_reads_the_top_level_s_codes():
    vae = VAEConfig(codebook_sizes=(16, 32))
    prior = TransformerConfig(codebook_sizes=(16,), decoding="global", condition="none")
    refiner = TransformerConfig(
        codebook_sizes=(32,), side=16, decoding="global", condition="codes", prefix_vocab_size=16, prefix_length=64
    )
    assert HQTVAEConfig(vae, prior, refiner).refiner == refiner
    for name in ("prefix_vocab_size", "prefix_length"):
        data = edited(to_dict(HQTVAEConfig(vae, prior, refiner)), ("refiner", name), 65)
        with pytest.raises(ConfigError, match=f"refiner.{name}: expected (16|64), of the top level's codes; got 65"):
            from_dict(data)


RELEASED = {
    "stage1.hparams.ch": (32.0, "32", -1),
    "stage1.hparams.ch_mult": (1, ["1"], []),
    "stage1.hparams.attn_resolutions": (8, {"a": 1}),
    "stage1.hparams.use_init_downsample": (1, "yes"),
    "stage1.hparams.pdrop": (math.nan, -1),
    "stage1.n_embed": (0, True, [64]),
    "stage1.hparams_aux.upsample": (3, "pixelshuffle99999"),
    "stage2.hparams.n_layers": (10**9, "2"),
    "stage2.hparams.embed_dim": (64.5,),
    "stage2.hparams.embedding_type": ("transformer" + "1" * 9, 7),
    "stage2.hparams.position_embedding": ("3d",),
    "stage2.use_cls_cond": ("yes",),
    "stage2.vocab_size_img": (10**12,),
    "stage2.hparams_dec.resid_pdrop": (2, "a"),
    "stage2.hparams_dec": ([],),
    "stage2.type": ([], 3),
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in RELEASED.items() for value in values])
def test_G11_a_released_configuration_names_its_own_field(tmp_path, name, value):
    data = yaml.safe_load((GOLDEN / "class_parallel" / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(edited(data, name.split("."), value)))
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.yaml'}: config.{name}: expected "), str(error.value)


@pytest.mark.parametrize("case", CASES)
def test_G11_every_released_configuration_is_still_one(case):
    config = checkpoint.load(Path(GOLDEN) / case).config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_G11_a_number_as_wide_as_a_line_is_not_shown():
    with pytest.raises(ConfigError) as error:
        BlocksConfig(num_layers=10**5000)
    assert str(error.value) == "num_layers: expected an integer from 0 to 256; got int"


CLIP = Path(__file__).parent.parent / "evaluate" / "golden" / "clip"


def test_G11_a_clip_configuration_names_its_file_and_field(tmp_path):
    shutil.copytree(CLIP, tmp_path / "clip")
    file = tmp_path / "clip" / "config.json"
    data = json.loads(file.read_text())
    file.write_text(
        json.dumps({**data, "another_s": [1], "text_config": {**data["text_config"], "bos_token_id": None}})
    )
    assert load_clip(tmp_path / "clip").texts.length == data["text_config"]["max_position_embeddings"]
    wrong = {
        ("text_config", "hidden_size"): (
            "64",
            "text_config.hidden_size: expected an integer from 1 to 16,384; got '64'",
        ),
        ("vision_config", "hidden_act"): ("relu", "vision_config.hidden_act: expected one of quick_gelu, gelu"),
        ("vision_config", "num_hidden_layers"): (10**9, "vision_config.num_hidden_layers: expected an integer from 1"),
        ("vision_config", "num_attention_heads"): (7, "vision_config.num_attention_heads: expected a divisor of"),
        ("text_config",): ([], "text_config: expected a mapping; got []"),
    }
    for path, (value, message) in wrong.items():
        file.write_text(json.dumps(edited(data, path, value)))
        with pytest.raises(ConfigError) as error:
            load_clip(tmp_path / "clip")
        assert str(error.value).startswith(f"{file}: {message}")

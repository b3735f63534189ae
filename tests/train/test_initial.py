"""A run that begins with a checkpoint: its architecture, its weights, and what the data have of their own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

pytest.importorskip("accelerate", reason="training needs the train extra")

from accelerate import Accelerator
from small_runs import TRANSFORMER, VAE, stage1, stage2, write_pictures
from tokenizers import Tokenizer

from hqtvae_fast import checkpoint
from hqtvae_fast.config import ConfigError, HQTVAEConfig, from_dict
from hqtvae_fast.train.data import PLAIN, open_source
from hqtvae_fast.train.initial import (
    init_transformer,
    init_vae,
    keeps_vae,
    own_vocabulary,
)
from hqtvae_fast.train.run import train_stage1, train_stage2
from hqtvae_fast.train.sizing.models import make_transformer_config
from hqtvae_fast.train.tokenizer import Vocabulary, vocabulary

TEXTS = ("a red apple", "two blue pears", "one green plum")
NAMES = ("bright", "dark")


def quiet(_line: str) -> None: ...


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def write_captioned(root: Path, captions: tuple[str, ...] = TEXTS, side: int = 64) -> Path:
    """A ball on white for every caption, as an emoji might be."""
    root.mkdir(parents=True)
    for index, _ in enumerate(captions):
        picture = Image.new("RGB", (side, side), "white")
        inset = side // 8 + index
        ImageDraw.Draw(picture).ellipse((inset, inset, side - inset, side - inset), fill=(230, 190 - 60 * index, 30))
        picture.save(root / f"{index}.png")
    named = {f"{index}.png": caption for index, caption in enumerate(captions)}
    (root / "captions.json").write_text(json.dumps(named))
    return root


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    return write_captioned(tmp_path_factory.mktemp("captioned") / "set")


def config_of(condition: str, **changes) -> HQTVAEConfig:
    data = {"vae": VAE, "transformer": None}
    vae = from_dict(data).vae
    return HQTVAEConfig(vae, make_transformer_config({**TRANSFORMER, "condition": condition, **changes}, vae))


def saved(directory: Path, condition: str, names: tuple[str | None, ...] = (), **changes) -> Path:
    """A checkpoint of both stages with random weights."""
    config = dataclasses.replace(config_of(condition, **changes), id2label=names)
    made = dataclasses.replace(checkpoint.build(config), config=config)
    checkpoint.save(made, directory)
    return directory


@pytest.fixture(scope="module")
def by_class(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("by_class"), "class", ("dog", "cat"))


@pytest.fixture(scope="module")
def by_text(tmp_path_factory, captioned) -> Path:
    """With a tokenizer of the captions, that reads 8 tokens."""
    root = tmp_path_factory.mktemp("by_text")
    made = vocabulary(open_source(captioned), PLAIN, root / "tokenizer.json")
    sizes = {"prefix_vocab_size": made.size, "prefix_length": made.length}
    return saved(root, "text", **sizes)


# ------------------------------------------------------------------------------------------------------ stage 1


def test_the_architecture_of_stage_1_is_taken_over():
    """The demo's is none that a run has by default."""
    config, vae = init_vae("demo", {})
    held = checkpoint.load("demo").vae
    assert config == vae.config == held.config
    assert config.resolution == 64
    state = vae.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(torch.equal(value.float(), state[name]) for name, value in held.state_dict().items())


def test_what_no_weight_depends_on_may_be_changed():
    config, vae = init_vae("demo", {"dropout": 0.2, "ema_decay": 0.9, "commitment_weight": 0.5, "channels": 32})
    assert (config.dropout, config.ema_decay, config.commitment_weight) == (0.2, 0.9, 0.5)
    assert vae.codebooks[0].decay == 0.9


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"resolution": 128}, r"model.resolution: expected 64, as demo has, .*; got 128"),
        (
            {"codebook_sizes": [64, 64]},
            r"model.codebook_sizes: expected \(1024, 1024\), as demo has, .*; got \(64, 64\)",
        ),
        ({"chanels": 64}, r"model: unknown field 'chanels'; expected some of .*channels"),
        ({"ema_decay": 2.0}, r"model.ema_decay: expected a number from 0 to 1; got 2.0"),
    ],
)
def test_another_architecture_of_stage_1_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        init_vae("demo", changes)


# ------------------------------------------------------------------------------------------------------ stage 2


def init(path, condition, *, classes=(), tokenizer=None, changes=None, say=quiet):
    vae = checkpoint.load(path).vae.config
    return init_transformer(str(path), condition, classes, tokenizer, changes or {}, vae, say=say)


def state_of(path) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in checkpoint.load(path).transformer.state_dict().items()}


def all_but_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("prefix.")}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def shared_rows(left: torch.Tensor, right: torch.Tensor) -> int:
    """Of the rows of two tables, how many pairs are the same."""
    return int((left[:, None] == right[None]).all(dim=-1).sum())


def test_classes_of_the_same_names_keep_their_rows(by_class):
    said: list[str] = []
    model = init(by_class, "class", classes=("bird", "cat", None, "fish"), say=said.append)
    before, after = state_of(by_class), model.state_dict()
    assert model.config.num_classes == 4
    assert equal(all_but_prefix(before), all_but_prefix(after))
    rows = after["prefix.embedding.weight"]
    assert torch.equal(rows[1], before["prefix.embedding.weight"][1])
    others = rows[[0, 2, 3]]
    assert not shared_rows(others, before["prefix.embedding.weight"])
    assert 0.01 < float(others.std()) < 0.03
    assert len(said) == 1
    assert "cat" in said[0]
    assert "new: bird, fish" in said[0]


def test_the_same_classes_in_another_order(by_class):
    model = init(by_class, "class", classes=("cat", "dog"))
    assert torch.equal(
        model.state_dict()["prefix.embedding.weight"], state_of(by_class)["prefix.embedding.weight"][[1, 0]]
    )


def test_without_names_labels_decide_where_there_are_as_many(tmp_path):
    path = saved(tmp_path / "unnamed", "class")
    said: list[str] = []
    model = init(path, "class", classes=("a", "b"), say=said.append)
    assert equal(state_of(path), model.state_dict())
    assert "by their labels" in said[0]
    other = init(path, "class", classes=("a", "b", "c"))
    table = "prefix.embedding.weight"
    assert not shared_rows(other.state_dict()[table], state_of(path)[table])


def test_more_classes_than_the_data_have_may_be_asked_for(by_class):
    assert init(by_class, "class", classes=("cat",), changes={"num_classes": 7}).config.num_classes == 7
    with pytest.raises(ConfigError, match=r"model.num_classes: expected 3 or more, .* got 2"):
        init(by_class, "class", classes=("a", "b", "c"), changes={"num_classes": 2})


def test_tokens_of_the_same_spelling_keep_their_rows(by_text, tmp_path):
    source = open_source(write_captioned(tmp_path / "set", ("two red grapes on a table", "one blue apple, ripe")))
    new = vocabulary(source, PLAIN, tmp_path / "tokenizer.json")
    said: list[str] = []
    model = init(by_text, "text", tokenizer=new, say=said.append)
    assert (model.config.prefix_vocab_size, model.config.prefix_length) == (new.size, new.length)
    before, after = state_of(by_text), model.state_dict()
    assert equal(all_but_prefix(before), all_but_prefix(after))
    old_ids, new_ids = (Tokenizer.from_file(str(file)).get_vocab() for file in (by_text / "tokenizer.json", new.file))
    shared = sorted(set(old_ids) & set(new_ids))
    fresh = sorted(set(new_ids) - set(old_ids))
    assert shared
    assert fresh
    for part in ("prefix.embedding.weight", "prefix.head.weight"):
        kept = after[part][[new_ids[token] for token in shared]]
        assert torch.equal(kept, before[part][[old_ids[token] for token in shared]])
        assert not shared_rows(after[part][[new_ids[token] for token in fresh]], before[part])
    shorter = min(len(before["prefix.position.weight"]), new.length)
    assert torch.equal(after["prefix.position.weight"][:shorter], before["prefix.position.weight"][:shorter])
    assert torch.equal(after["prefix.norm.weight"], before["prefix.norm.weight"])
    assert f"{len(shared):,} of {len(new_ids):,} tokens by spelling" in said[0]


def test_its_own_tokenizer_takes_all_weights(by_text):
    said: list[str] = []
    model = init(by_text, "text", tokenizer=own_vocabulary(str(by_text)), say=said.append)
    assert equal(state_of(by_text), model.state_dict())
    assert "all weights" in said[0]


@pytest.mark.parametrize("condition,parts", [("class", {"embedding.weight"}), ("none", {"start"})])
def test_another_condition_keeps_all_but_the_prefix(by_text, condition, parts):
    said: list[str] = []
    model = init(by_text, condition, classes=("a", "b", "c") if condition == "class" else (), say=said.append)
    after = model.state_dict()
    assert equal(all_but_prefix(state_of(by_text)), all_but_prefix(after))
    assert {name for name in after if name.startswith("prefix.")} == {f"prefix.{part}" for part in parts}
    assert model.config.condition == condition
    assert "text" in said[0]
    codes = [torch.zeros(2, side, side, dtype=torch.int64) for side in (model.config.side, 2 * model.config.side)]
    labels = torch.tensor([0, 2]) if condition == "class" else None
    assert model(codes, labels).levels[0].isfinite().all()


def test_class_to_text(by_class, captioned, tmp_path):
    words = vocabulary(open_source(captioned), PLAIN, tmp_path / "tokenizer.json")
    model = init(by_class, "text", tokenizer=words)
    assert equal(all_but_prefix(state_of(by_class)), all_but_prefix(model.state_dict()))
    assert (model.config.prefix_vocab_size, model.config.prefix_length) == (words.size, words.length)


def test_dropout_may_differ(by_class):
    changes = {"body": {"residual_dropout": 0.3}, "head": {"attention_dropout": 0.1}, "embedding_dropout": 0.2}
    config = init(by_class, "class", classes=("cat", "dog"), changes=changes).config
    assert (config.body.residual_dropout, config.head.attention_dropout) == (0.3, 0.1)
    assert config.head.residual_dropout == 0.1  # as it was
    assert config.embedding_dropout == 0.2


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"dim": 64}, r"model.dim: expected 32, as .* has, .*; got 64"),
        ({"body": {"num_layers": 2}}, r"model.body.num_layers: expected 1, as .* has, .*; got 2"),
        ({"body": {"layers": 2}}, r"model.body: unknown field 'layers'"),
        ({"body": 3}, r"model.body: expected a mapping; got 3"),
        ({"condition": "text"}, r"model.condition: expected 'class', as the data have; got 'text'"),
    ],
)
def test_another_architecture_of_stage_2_is_refused(by_class, changes, message):
    with pytest.raises(ConfigError, match=message):
        init(by_class, "class", classes=("cat", "dog"), changes=changes)


def test_codes_of_another_stage_1_are_refused(by_class):
    other = from_dict({"vae": {**VAE, "codebook_sizes": [16, 32]}}).vae
    with pytest.raises(ConfigError, match=r"init: expected stage 2 on codes of the run's stage 1; .*codebook_sizes"):
        init_transformer(str(by_class), "class", ("cat", "dog"), None, {}, other, say=quiet)


def test_a_checkpoint_without_stage_2(tmp_path):
    path = tmp_path / "vae"
    checkpoint.save(checkpoint.build(from_dict({"vae": VAE})), path)
    with pytest.raises(ConfigError, match=r"init: expected a checkpoint with stage 2; got .*, with stage 1 only"):
        init(path, "class", classes=("a",))


def test_without_init_the_data_say_what_the_prefix_is(tmp_path):
    vae = from_dict({"vae": VAE}).vae
    words = Vocabulary(tmp_path / "tokenizer.json", 77, 24)
    model = init_transformer(
        None, "text", (), words, {"dim": 32, "body": {"num_heads": 2}, "head": {"num_heads": 2}}, vae
    )
    assert (model.config.condition, model.config.prefix_vocab_size, model.config.prefix_length) == ("text", 77, 24)
    model = init_transformer(None, "class", ("a", "b"), None, {**TRANSFORMER, "num_classes": 3}, vae)
    assert (model.config.condition, model.config.num_classes) == ("class", 3)


# ---------------------------------------------------------------------------------------------------------- runs


def test_a_run_takes_over_the_architecture_in_both_stages(by_text, captioned, tmp_path):
    """Without a word on its model, nor on what it is conditioned on."""
    common = {"model": {}, "init": str(by_text), "steps": 1, "batch_size": 2}
    train_stage1(stage1(captioned, tmp_path / "vae", adversarial=0.0, **common))
    train_stage2(stage2(captioned, tmp_path / "vae" / "model", tmp_path / "hqt", **common))
    assert checkpoint.load(tmp_path / "hqt" / "model").config == checkpoint.load(by_text).config
    files = (by_text / "tokenizer.json", tmp_path / "hqt" / "tokenizer.json")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_stage_1_is_kept_where_it_reconstructs_the_pictures(captioned, tmp_path, capsys):
    accelerator, (_, vae) = Accelerator(cpu=True), init_vae("demo", {})
    assert keeps_vae(accelerator, vae, open_source(captioned))
    assert vae.training
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    (tmp_path / "noise").mkdir()
    for index, array in enumerate(noise):
        Image.fromarray(array).save(tmp_path / "noise" / f"{index}.png")
    assert not keeps_vae(accelerator, vae, open_source(tmp_path / "noise"))
    kept, trained = capsys.readouterr().err.splitlines()
    assert kept.endswith("dB: kept as it is")
    assert "dB: trained on" in trained

"""The names of classes: kept in a model's configuration, read and shown wherever a class is."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from hqtvae_fast import HQTVAEPipeline, checkpoint
from hqtvae_fast.checkpoint_config import read_config
from hqtvae_fast.classes import Classes, UntrainedClassWarning, _plain
from hqtvae_fast.config import CheckpointError, ConfigError, HQTVAEConfig, from_dict, to_dict
from hqtvae_fast.hub import model_card

UNNAMED = read_config(GOLDEN / "class_parallel")  # of ten classes
NAMES = ("cat", "hot dog", None, "tench, Tinca tinca", "Kai\u0308ser", "5-7", None, None, "t-shirt", None)
NAMED = replace(UNNAMED, id2label=NAMES)
CLASSES = NAMED.classes


def as_given(**changes):
    return {**to_dict(NAMED), **changes}


# ------------------------------------------------------------------------------------------------- in the configuration


def test_names_are_a_mapping_by_label_without_the_classes_that_had_no_pictures():
    mapping = to_dict(NAMED)["id2label"]
    assert list(mapping) == ["0", "1", "3", "4", "5", "8"]
    assert mapping["3"] == "tench, Tinca tinca"
    assert from_dict(to_dict(NAMED)) == NAMED


def test_a_model_whose_classes_have_no_names_is_written_as_before():
    unnamed = replace(NAMED, id2label=())
    assert unnamed.id2label == ()
    assert "id2label" not in to_dict(unnamed)
    assert from_dict(to_dict(unnamed)) == unnamed
    assert from_dict(as_given(id2label={})) == unnamed


def test_names_do_not_tell_weights_apart():
    assert repr(NAMED) == repr(replace(NAMED, id2label=()))


@pytest.mark.parametrize(
    "names, message",
    [
        ({"10": "owl"}, "id2label: expected labels from 0 to 9; got '10'"),
        ({"-1": "owl"}, "id2label: expected labels from 0 to 9; got '-1'"),
        ({"٣": "owl"}, "id2label: expected labels from 0 to 9; got '٣'"),
        ({"cat": "0"}, "id2label: expected labels from 0 to 9; got 'cat'"),
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
    with pytest.raises(ConfigError, match=r"id2label: expected 10 names, one a class; got 1"):
        replace(NAMED, id2label=("cat",))
    with pytest.raises(ConfigError, match=r"id2label: expected none, as this model is not drawn from classes; got 10"):
        replace(NAMED, transformer=replace(NAMED.transformer, condition="none"))
    with pytest.raises(ConfigError, match=r"id2label: expected none, as this model is not drawn from classes; got 10"):
        HQTVAEConfig(NAMED.vae, None, id2label=NAMES)
    with pytest.raises(ConfigError, match=r"id2label: expected a name of some class; got none"):
        replace(NAMED, id2label=(None,) * 10)


def test_a_checkpoint_keeps_its_names_readable_by_people(tmp_path):
    named = replace(NAMED, id2label=("Füchse", "caf\udce9", *(None,) * 8))
    checkpoint.save(checkpoint.build(named), tmp_path)
    assert '"0": "Füchse"' in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert read_config(tmp_path).id2label[:3] == ("Füchse", "caf\\xe9", None)
    assert checkpoint.load(tmp_path).config == read_config(tmp_path)


def test_a_checkpoint_with_names_for_other_classes_is_refused_by_file_and_field(tmp_path):
    shutil.copyfile(checkpoint.DEMO_DIRECTORY / "config.json", tmp_path / "config.json")
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, "id2label": {"0": "cat"}}))
    with pytest.raises(CheckpointError, match=r"config\.json: id2label: expected none, as this model"):
        read_config(tmp_path)


# ------------------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    "values, labels",
    [
        (["0,3,5-7"], [0, 3, 5]),  # the last is a name
        (["1 2", "4-6"], [1, 2, 4, 5, 6]),
        (["cat, 8-9"], [0, 8, 9]),
        (["hot dog"], [1]),
        (["hot dog,cat"], [1, 0]),
        (["cat t-shirt 2"], [0, 8, 2]),
        (["tench, Tinca tinca"], [3]),
        (['"tench, Tinca tinca", hot dog ,"cat"'], [3, 1, 0]),
        (["Ka\u00efser", "Kai\u0308ser"], [4, 4]),  # one letter, written in two ways
        ([], []),
    ],
)
def test_classes_are_asked_for_by_name_and_by_number(values, labels):
    assert CLASSES.parse("--classes", values) == labels


def test_where_a_name_is_a_number_numbers_are_names():
    digits = Classes(4, ("10", "2", None, "01"))
    assert digits.parse("--classes", ["10,1-2"]) == [0, 3, 1]
    with pytest.raises(ValueError, match=r"--classes: expected names of classes, or .*; got '3'"):
        digits.parse("--classes", ["3"])
    with pytest.raises(ValueError, match="got '1-3'"):
        digits.parse("--classes", ["1-3"])


@pytest.mark.parametrize(
    "value, message",
    [
        ("hot dgo", "--classes: expected names of classes, or integers and ranges such as 0,3,5-7; got 'hot dgo'; close"
         " to it: 'hot dog'"),
        ("CAT", "got 'CAT'; close to it: 'cat'"),
        ("zzz", "got 'zzz'; there are cat, hot dog, \"tench, Tinca tinca\", Kai\u0308ser, 5-7 and 1 more"),
        ("cat,,hot dog", "got ''"),
        ("", "got ''"),
        ('"hot dog', "--classes: expected names, each in quotes or none; got '\"hot dog'"),
        ("9-8", "--classes: expected a range from a smaller to a larger number; got '9-8'"),
        ("-1", "got '-1'"),
        ("cat\ndog", "got 'cat\\ndog'"),
    ],
)  # fmt: skip
def test_what_is_no_class_is_told_with_what_is_close_to_it(value, message):
    with pytest.raises(ValueError) as error:
        CLASSES.parse("--classes", [value])
    assert message in str(error.value)


def test_a_name_of_two_classes_needs_the_number():
    birds = Classes(3, ("crane", "owl", "crane"))
    with pytest.raises(ValueError, match="--classes: expected one class; got 'crane', the name of 0, 2"):
        birds.parse("--classes", ["owl,crane"])
    assert birds.parse("--classes", ["2"]) == [2]


@pytest.mark.parametrize(
    "names, labels, spelled",
    [
        (NAMES, (1, 0), "hot dog,cat"),
        (NAMES, (3, 8), '"tench, Tinca tinca",t-shirt'),
        (NAMES, (2, 5), "2,5-7"),
        ((), (3, 1), "3,1"),
        (("10", "2", None, "01"), (0, 1, 3), "10,2,01"),
        (("crane", "owl", "crane"), (2, 1), "2,owl"),
        (('the "best"', '"x"'), (0, 1), 'the "best","""x"""'),
        (("a", "b", "a,b"), (0, 1), '"a","b"'),  # else it would be the third
        ((" a ", "b\nc", "café"), (0, 1, 2), 'a,"b\nc",café'),
    ],
)
def test_what_is_written_of_labels_is_read_as_these(names, labels, spelled):
    classes = Classes(10, names)
    assert classes.spelled(labels) == spelled
    assert tuple(classes.parse("--classes", [spelled])) == labels


def test_a_model_without_names_takes_numbers_alone():
    with pytest.raises(ValueError, match="--classes: expected integers and ranges such as 0,3,5-7, as the classes of"):
        UNNAMED.classes.parse("--classes", ["cat"])
    assert UNNAMED.classes.parse("--classes", ["3-4"]) == [3, 4]


def test_what_a_picture_shows_in_words():
    assert [CLASSES.caption(label) for label in (1, 2)] == ["hot dog", "class 2"]
    assert (UNNAMED.classes.caption(1), Classes(0).trained) == ("class 1", range(0))
    assert (list(CLASSES.trained), UNNAMED.classes.trained) == ([0, 1, 3, 4, 5, 8], range(10))


def test_classes_without_training_pictures_are_named_in_a_warning():
    with pytest.warns(UntrainedClassWarning, match="^class 2: without training pictures") as caught:
        CLASSES.warn_untrained([0, 2, 2, 99])
    assert caught[0].filename == __file__
    with pytest.warns(UntrainedClassWarning, match="^classes 2, 6, 7, 9: without"):
        CLASSES.warn_untrained(range(10))
    UNNAMED.classes.warn_untrained(range(10))


# ---------------------------------------------------------------------------------------------------------- in Python


@pytest.fixture(scope="module")
def pipe():
    opened = checkpoint.load(GOLDEN / "class_parallel")
    return HQTVAEPipeline(replace(opened, config=NAMED), device="cpu", dtype=torch.float32)


def test_a_pipeline_takes_names_among_labels(pipe):
    wanted = pipe([0, 3, 1], output_type="codes", progress=False).codes
    for given in (["cat", 3, "hot dog"], ("cat", torch.tensor(3), np.str_("hot dog"))):
        got = pipe(class_labels=given, output_type="codes", progress=False).codes
        assert all(torch.equal(left, right) for left, right in zip(wanted, got, strict=True))
    alone = pipe("tench, Tinca tinca", seed=[7], output_type="codes", progress=False).codes
    streamed = next(pipe.stream(np.array(["tench, Tinca tinca"]), seed=[7], output_type="codes")).codes
    assert all(torch.equal(left[0], right) for left, right in zip(alone, streamed, strict=True))


def test_a_pipeline_refuses_other_names(pipe, class_pipeline):
    with pytest.raises(
        ValueError, match=r"class_labels: expected the name of a class; got 'hot dgo'; close .*'hot dog'"
    ):
        pipe(["cat", "hot dgo"])
    with pytest.raises(ValueError, match=r"class_labels: expected the name of a class; got '3'; there are cat, "):
        pipe("3")
    with pytest.raises(ValueError, match=r"class_labels: expected an integer or a list of them; got 'cat'"):
        class_pipeline("cat")
    with pytest.raises(ValueError, match=r"class_labels: expected an integer or a list of them; got "):
        pipe([b"cat"])


def test_a_pipeline_warns_of_what_it_was_not_trained_on(pipe):
    with pytest.warns(UntrainedClassWarning, match="class 2") as caught:
        pipe([0, 2], output_type="codes", progress=False)
    assert caught[0].filename == __file__
    with pytest.warns(UntrainedClassWarning, match="class 2") as caught:
        pipe.stream(2, output_type="codes").close()
    assert caught[0].filename == __file__


def test_a_pipeline_and_its_card_say_what_it_draws(pipe):
    assert 'from 6 classes (cat, hot dog, "tench, Tinca tinca", Kai\u0308ser, 5-7 and 1 more); 1.2 M' in repr(pipe)
    card = model_card(pipe._checkpoint, "me/tiny")
    assert "drawn from 6 classes (cat, " in card
    assert "pipe(class_labels=['cat', 'hot dog'], num_images=4)" in card
    assert "| classes | `cat`, `hot dog`, `tench, Tinca tinca`, " in card


def test_a_kept_pipeline_keeps_its_names(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert HQTVAEPipeline.from_pretrained(tmp_path, device="cpu").config.id2label == NAMES


@pytest.mark.parametrize("cases", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_whatever_names_are_what_is_written_is_read_as_it_is_meant(cases):
    draw = random.Random(0)
    for _ in range(cases):
        names = [
            "".join(draw.choices("ab1 ,\"'-\n\te\u0301\u00e9", k=draw.randint(1, 5))) for _ in range(draw.randint(1, 6))
        ]
        names = [name for name in names if name.strip()] or ["b"]
        classes = Classes(len(names), tuple(names))
        own = [label for label, name in enumerate(names) if len(classes._by_name[_plain(name)]) == 1]
        for labels in (own, own[::-1], own[:1]) if own else ():
            assert classes.parse("--classes", [classes.spelled(labels)]) == labels, names

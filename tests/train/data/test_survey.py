"""What a set of pictures says of itself: its condition, its classes with their names, and how many of each."""

from __future__ import annotations

import json

import pytest
from small_sets import picture, write_folder, write_tar

from hqtvae_fast.train.data import EMOJI, PLAIN, CaptionTemplate, Facts, Selection, open_source, select, survey
from hqtvae_fast.train.data.coded import FORMAT
from hqtvae_fast.train.data.sources import ClassFolder

PNG = picture(0)


def folders(root, **sizes):
    return write_folder(root, {f"{name}/{i}.png": PNG for name, size in sizes.items() for i in range(size)})


def tar_of(path, *fields):
    """A shard of a picture for each of ``fields``: a mapping for its .json, an integer or text for its .cls."""
    members = {}
    for index, known in enumerate(fields):
        members[f"{index}.png"] = PNG
        if isinstance(known, dict):
            members[f"{index}.json"] = json.dumps(known).encode()
        elif known is not None:
            members[f"{index}.cls"] = str(known).encode()
    return write_tar(path, members)


def facts_of(root, *fields, caption=PLAIN):
    return survey(open_source(tar_of(root / "s.tar", *fields)), caption)


def test_class_folders(tmp_path, monkeypatch):
    source = open_source(folders(tmp_path, food=3, cat=2, **{"red car": 1}))
    read, original = [], ClassFolder.fields
    monkeypatch.setattr(ClassFolder, "fields", lambda self, index: read.append(index) or original(self, index))
    facts = survey(source, PLAIN)
    assert len(read) <= 1  # the folders say it all
    assert (facts.pictures, facts.condition, facts.note) == (6, "class", "")
    assert facts.classes == ("cat", "food", "red car")
    assert facts.counts == (2, 3, 1)
    assert facts.labels.tolist() == [0, 0, 1, 1, 1, 2]


def test_a_class_without_pictures_has_no_name(tmp_path):
    source = select(open_source(folders(tmp_path, ant=1, bee=2, cow=1)), {"class_name": ["bee"]})
    facts = survey(source, PLAIN)
    assert facts.classes == (None, "bee", None)
    assert facts.counts == (0, 2, 0)
    assert facts.labels.tolist() == [1, 1]


def test_a_folder_of_pictures_has_no_condition(tmp_path):
    facts = survey(open_source(write_folder(tmp_path, {f"{i}.png": PNG for i in range(3)})), PLAIN)
    assert facts == Facts(pictures=3, condition="none", fingerprint=facts.fingerprint, caption=PLAIN.template)
    assert (facts.classes, facts.counts, facts.labels) == ((), (), None)


def test_captions(tmp_path):
    write_folder(tmp_path, {"a.png": PNG, "b.png": PNG, "captions.json": b'{"a.png": "x", "b.png": ["y", "z"]}'})
    assert survey(open_source(tmp_path), PLAIN).condition == "text"
    assert survey(open_source(tmp_path), EMOJI).condition == "none"  # these are fields that it does not have
    emoji = {"name": "anchor", "style": "noto"}
    assert facts_of(tmp_path, emoji, emoji, caption=EMOJI).condition == "text"


def test_captions_before_labels_with_a_note(tmp_path):
    facts = facts_of(tmp_path, {"caption": "a cat", "label": 0}, {"caption": "a dog", "label": 1})
    assert facts.condition == "text"
    assert facts.note == "pictures have captions and labels: the captions are used"
    assert facts.labels.tolist() == [0, 1]  # what is held out is spread over them
    source = open_source(folders(tmp_path / "set", cat=1, dog=1))
    facts = survey(source, CaptionTemplate("a photo of a {class_name}"))
    assert (facts.condition, facts.note) == ("text", "pictures have captions and labels: the captions are used")


def test_labels_of_shards(tmp_path):
    facts = facts_of(tmp_path, 5, 2, 5, None)
    assert facts.condition == "class"
    assert facts.classes == (None, None, "class 2", None, None, "class 5")
    assert facts.counts == (0, 0, 1, 0, 0, 2)
    assert facts.labels.tolist() == [5, 2, 5, -1]
    assert facts.note == "1 of 4 pictures without a label, left out"


@pytest.mark.parametrize("field", ["class_name", "class", "cls"])
def test_names_in_the_fields(tmp_path, field):
    named = [{"label": 1, field: "cat"}, {"label": 0, field: "a, b"}, {"label": 2, field: 2}, {"label": 1}]
    assert facts_of(tmp_path, *named).classes == ("a, b", "cat", "class 2")


def test_names_that_do_not_tell_classes_apart(tmp_path):
    """ImageNet has two classes named crane; a name chooses one class."""
    named = [{"label": 0, "class": "crane"}, {"label": 1, "class": "crane"}, {"label": 2, "class": "ox"}]
    facts = facts_of(tmp_path, *named, {"label": 2, "class": "cow"})
    assert facts.classes == ("crane", "crane (1)", "ox")
    assert facts.note == "label 2 is named ox and cow: the first is used"


def test_few_captions_or_labels_are_no_condition(tmp_path):
    captioned = {"caption": "x", "label": 0}
    assert facts_of(tmp_path, *[captioned] * 2, *[{"label": 1}] * 3).condition == "class"
    facts = facts_of(tmp_path, captioned, *[None] * 3)
    assert facts.condition == "none"
    assert facts.note == "1 of 4 pictures with a caption, 1 with a label: too few to train from"
    facts = facts_of(tmp_path, *[{"caption": "x"}] * 3, None)
    assert (facts.condition, facts.note) == ("text", "1 of 4 pictures without a caption, left out")


def test_fields_that_cannot_be_read_count_as_none(tmp_path):
    tar = write_tar(tmp_path / "s.tar", {"a.png": PNG, "a.json": b"[", "b.png": PNG, "b.cls": b"0", "c.png": PNG,
                                         "c.cls": b"1"})  # fmt: skip
    facts = survey(open_source(tar), PLAIN)
    assert (facts.condition, facts.labels.tolist()) == ("class", [-1, 0, 1])
    assert facts.note.startswith(
        "1 of 3 pictures without a label, left out; what is known of 1 cannot be read: s.tar/a.j"
    )


def test_names_without_numbers(tmp_path):
    """As text in .cls, which WebDataset means for a number."""
    facts = facts_of(tmp_path, "cat", "dog", {"class": "cat"}, None)
    assert (facts.condition, facts.classes) == ("none", ())
    assert facts.note == (
        "3 of 4 pictures name a class (cat, dog) without a number in the field label: to train on classes, number them,"
        " or put pictures into folders by class"
    )
    both = {"0.png": PNG, "0.cls": b"red car", "0.json": b'{"label": 0}'}
    assert survey(open_source(write_tar(tmp_path / "b.tar", both)), PLAIN).classes == ("red car",)


@pytest.mark.parametrize("label, got", [(-1, "-1"), (10**9, "1000000000"), (2**70, str(2**70))])
def test_labels_that_number_no_classes(tmp_path, label, got):
    with pytest.raises(ValueError, match=rf"s.tar/1: expected a label from 0 to 999999; got {got}"):
        facts_of(tmp_path, {"label": 0}, {"label": label})
    assert facts_of(tmp_path, *[{"label": label, "caption": "x"}] * 2).condition == "text"


def test_a_label_that_is_no_number_is_none(tmp_path):
    assert facts_of(tmp_path, {"label": "cat"}, {"label": True}, {"label": 1.0}).condition == "none"


def test_kept_and_read_again(tmp_path):
    source = open_source(tar_of(tmp_path / "s.tar", {"label": 1, "class": "café"}, {"label": 3}, None))
    facts, file = survey(source, PLAIN), tmp_path / "data.json"
    file.write_text(facts.json(), encoding="utf-8")
    again = Facts.read(file, source, PLAIN)
    assert again == facts
    assert again.labels.tolist() == facts.labels.tolist() == [1, 3, -1]
    assert json.loads(file.read_text())["classes"] == {"1": "café", "3": "class 3"}
    assert facts.json().count("\n") < 20
    assert Facts.read(file, source, EMOJI) is None
    assert Facts.read(file, Selection(source, [0, 1]), PLAIN) is None
    assert Facts.read(tmp_path / "gone.json", source, PLAIN) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": 3}', "\xff"])
def test_a_damaged_file_is_surveyed_anew(tmp_path, text):
    source = open_source(folders(tmp_path / "set", cat=1))
    (tmp_path / "data.json").write_bytes(text.encode("latin-1"))
    assert Facts.read(tmp_path / "data.json", source, PLAIN) is None
    written = json.loads(survey(source, PLAIN).json())
    for name in written:
        (tmp_path / "data.json").write_text(json.dumps({**written, name: {"x": []}}))
        assert Facts.read(tmp_path / "data.json", source, PLAIN) is None


def test_class_folders_are_kept_without_their_labels(tmp_path):
    source = open_source(folders(tmp_path / "set", cat=40, dog=60))
    facts = survey(source, PLAIN)
    (tmp_path / "data.json").write_text(facts.json())
    assert "labels" not in json.loads(facts.json())  # the folders tell them
    assert Facts.read(tmp_path / "data.json", source, PLAIN).labels.tolist() == facts.labels.tolist()


def test_shards_of_codes(tmp_path):
    """Names come from codes.json."""
    spec = {"format": FORMAT, "class_names": ["ant", "bee", "cow"]}
    (tmp_path / "codes.json").write_text(json.dumps(spec))
    members = {}
    for index, label in enumerate((2, 0, 2)):
        members |= {f"{index}.level_0.npy": b"", f"{index}.json": json.dumps({"key": "x", "label": label}).encode()}
    write_tar(tmp_path / "codes-000000.tar", members)
    facts = survey(open_source(tmp_path, codes=True), PLAIN)
    assert (facts.condition, facts.classes, facts.counts) == ("class", ("ant", None, "cow"), (1, 0, 2))

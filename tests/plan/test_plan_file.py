"""A plan's file: what it says comes back, other facts refuse it, and a file that is none is one clear line."""

from __future__ import annotations

import json
import os

import pytest

from hqtvae_fast.plan import Plan
from hqtvae_fast.plan_file import (
    Measured,
    PlanError,
    PlanFile,
    facts_id,
    plan_path,
    plans_folder,
    verified_path,
)

FACTS = {"device": "a GPU", "multiprocessors": 132, "torch": "2.13.0", "processor": ["AVX512", "AVX2"], "driver": None}
FILE = PlanFile(
    "tuned",
    FACTS,
    {
        "op | f32[1,2]": Measured("triton/128", "triton", 10.5, 0.2, 12.0, 0.3, True, 1e-4, 1e-3),
        "op | f32[2,2]": Measured("torch"),
    },
    {1: Measured("captured, skip_query", ""), 64: Measured("")},
    {"op cuda": "killed by SIGSEGV"},
    frozenset({"op triton", "op triton/128"}),
    (1, 4, 16),
    16,
    {1: 0.25, 4: 0.5, 16: 1.5, 32: 9.0},
    frozenset({"op native"}),
)


def test_what_was_written_comes_back(tmp_path):
    FILE.write(tmp_path / "deep" / "plan.json")
    read = PlanFile.read(tmp_path / "deep" / "plan.json")
    assert read == FILE
    plan = read.plan
    assert plan == Plan(
        "tuned",
        {"op | f32[1,2]": "triton/128", "op | f32[2,2]": "torch"},
        {1: "captured, skip_query", 64: ""},
        {"op cuda": "killed by SIGSEGV"},
        frozenset({"op triton", "op triton/128"}),
        (1, 4, 16),
        16,
    )
    assert PlanFile.of(plan, FACTS).plan.id == plan.id


def test_it_reads_well(tmp_path):
    FILE.write(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    sizes = ["batches", "best", "seconds"]
    assert list(content) == ["format", "kind", "facts", "choices", "engine", *sizes, "refused", "verified", "unreached"]
    assert [content[name] for name in sizes] == [[1, 4, 16], 16, {"1": 0.25, "4": 0.5, "16": 1.5, "32": 9.0}]
    assert content["choices"]["op | f32[2,2]"] == {"variant": "torch"}
    assert content["choices"]["op | f32[1,2]"]["incumbent_median"] == 12.0
    assert len((tmp_path / "plan.json").read_text().splitlines()) > 30
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]


def test_equal_facts_hold_and_a_difference_refuses_the_whole_file():
    FILE.check(dict(FACTS))
    other = {**FACTS, "torch": "2.14.0", "multiprocessors": None}
    with pytest.raises(PlanError) as caught:
        FILE.check(other, name="plan.json")
    assert str(caught.value) == (
        "plan.json: made under other facts: multiprocessors: expected 132, got none; torch: expected 2.13.0, got 2.14.0"
        " (all the same: --accept-fact multiprocessors --accept-fact torch)"
    )
    FILE.check(other, ["torch", "multiprocessors"])
    with pytest.raises(PlanError, match=r"facts: multiprocessors: expected 132, got none \(all"):
        FILE.check(other, ["torch"])


def test_a_fact_that_only_one_of_them_has_is_a_difference():
    with pytest.raises(PlanError, match="new: expected none, got 1"):
        FILE.check({**FACTS, "new": 1})
    with pytest.raises(PlanError, match=r"torch: expected 2\.13\.0, got none"):
        FILE.check({name: value for name, value in FACTS.items() if name != "torch"})


def test_only_facts_can_be_accepted():
    with pytest.raises(PlanError, match=r"--accept-fact: expected some of device, .*; got weather"):
        FILE.check(FACTS, ["weather"])


BROKEN = {
    "empty": ("", "expected JSON"),
    "other text": ("not ours", "expected JSON"),
    "a list": ("[]", "list indices"),
    "another format": ('{"format": "batches"}', "format 'batches' instead of"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_plan_is_one_line_that_names_the_file(name, tmp_path):
    text, said = BROKEN[name]
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(PlanError, match=said) as caught:
        PlanFile.read(file)
    assert str(caught.value).startswith(f"{file}: expected a plan as `hqtvae tune` writes it; got ")
    assert "\n" not in str(caught.value)
    assert file.read_text() == text


def test_a_file_cut_off_anywhere_is_none(tmp_path):
    file = tmp_path / "plan.json"
    FILE.write(file)
    data = file.read_bytes()
    for length in range(0, len(data) - 2, 7):
        file.write_bytes(data[:length])
        with pytest.raises(PlanError, match="expected a plan"):
            PlanFile.read(file)


EDITS = {
    "kind": (lambda content: content.update(kind="fast"), "kind 'fast' instead of one of reference, library"),
    "no facts": (lambda content: content.update(facts={}), "no facts"),
    "facts missing": (lambda content: content.pop("facts"), "no 'facts'"),
    "choices a list": (lambda content: content.update(choices=[]), "choices: something else than an object"),
    "no variant": (lambda content: content["choices"]["op | f32[2,2]"].clear(), r"op \| f32\[2,2\]: no variant"),
    "variant a number": (lambda content: content["choices"]["op | f32[2,2]"].update(variant=3), "variant 3"),
    "median a text": (lambda content: content["choices"]["op | f32[2,2]"].update(median="fast"), "median 'fast'"),
    "median a bool": (lambda content: content["choices"]["op | f32[2,2]"].update(median=True), "median True"),
    "unknown field": (lambda content: content["choices"]["op | f32[2,2]"].update(speed=1), "'speed', which is none of"),
    "bucket": (lambda content: content["engine"].update({"many": {"variant": ""}}), "engine: batch size 'many'"),
    "bucket 0": (lambda content: content["engine"].update({"0": {"variant": ""}}), "engine: batch size '0'"),
    "batches missing": (lambda content: content.pop("batches"), "no 'batches'"),
    "batches a number": (lambda content: content.update(batches=4), "batches: something else than a list"),
    "batches down": (
        lambda content: content.update(batches=[4, 1]),
        r"batches: expected ascending sizes from 1 on; got \[4, 1\]",
    ),
    "batches twice": (lambda content: content.update(batches=[4, 4]), r"expected ascending sizes .* got \[4, 4\]"),
    "batches of 0": (lambda content: content.update(batches=[0, 4]), r"expected ascending sizes .* got \[0, 4\]"),
    "batches of text": (lambda content: content.update(batches=["4"]), r"expected ascending sizes .* got \['4'\]"),
    "best 0": (lambda content: content.update(best=0), "best: expected a batch size from 1 on, or none; got 0"),
    "best a bool": (lambda content: content.update(best=True), "best: expected a batch size .* got True"),
    "seconds of many": (lambda content: content["seconds"].update(many=1.0), "seconds: batch size 'many'"),
    "no seconds": (lambda content: content["seconds"].update({"4": 0}), "seconds: of 4 images 0"),
    "seconds a text": (lambda content: content["seconds"].update({"4": "1"}), "seconds: of 4 images '1'"),
    "reason": (lambda content: content["refused"].update({"op cuda": 1}), "refused: a reason that is no text"),
    "verified": (lambda content: content.update(verified="all"), "verified: something else than a list"),
    "unreached": (lambda content: content.update(unreached=[1]), "unreached: something else than a list of names"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_that_is_none_any_more_says_where(name, tmp_path):
    edit, said = EDITS[name]
    file = tmp_path / "plan.json"
    FILE.write(file)
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    with pytest.raises(PlanError, match=said):
        PlanFile.read(file)


@pytest.mark.parametrize("edit", [{"batches": [1, 16]}, {"best": 4}, {"best": None}])
def test_other_sizes_are_another_plan(edit, tmp_path):
    file = tmp_path / "plan.json"
    FILE.write(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    assert PlanFile.read(file).plan.id != FILE.plan.id


def test_an_edited_choice_is_another_plan(tmp_path):
    file = tmp_path / "plan.json"
    FILE.write(file)
    file.write_text(file.read_text().replace("triton/128", "triton/256"))
    assert PlanFile.read(file).plan.id != FILE.plan.id


def test_where_files_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("HQTVAE_CACHE", str(tmp_path))
    assert plans_folder() == tmp_path / "plans"
    assert plan_path(FACTS) == tmp_path / "plans" / f"{facts_id(FACTS)}.json"
    assert verified_path(FACTS).parent == tmp_path / "plans"
    assert plan_path({**FACTS, "torch": "2.14.0"}) != plan_path(FACTS)
    assert plan_path(dict(reversed(FACTS.items()))) == plan_path(FACTS)
    monkeypatch.delenv("HQTVAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plans_folder() == tmp_path / "hqtvae_fast" / "plans"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"plan\.json"):
        FILE.write(tmp_path / "file" / "plan.json")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    FILE.write(file)
    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"plan\.json.*|No space left"):
        PlanFile("default", FACTS).write(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]

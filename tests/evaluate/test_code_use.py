"""Shards of codes are judged without being made again: against their pictures, or for the use of codes alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_pipeline

from hqtvae_fast.evaluate import Extractor, open_pictures, spans
from hqtvae_fast.evaluate.code_use import CodeUse, open_coded, use_of_stored
from hqtvae_fast.evaluate.reconstruction import measure_reconstructions
from hqtvae_fast.model import HQVAE
from hqtvae_fast.train.codes.shards import CodeShards
from hqtvae_fast.train.data import open_source

from .conftest import make_pixels, write_folder

CASE = GOLDEN / "class_parallel"
COUNT, BROKEN = 7, 2


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", make_pixels(COUNT, side=64))


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "damaged", make_pixels(COUNT, side=64))
    (folder / f"{BROKEN:05d}.png").write_bytes(b"no picture")
    return folder


def encode(pictures: Path, case: str = "class_parallel") -> Path:
    folder = pictures.parent / f"codes of {pictures.name} by {case}"
    CodeShards(folder, open_source(pictures), golden_pipeline(case).vae, 3, checkpoint=str(GOLDEN / case)).make(4)
    return folder


@pytest.fixture
def never_encoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on."""
    return lambda: monkeypatch.setattr(HQVAE, "encode", lambda *_, **__: pytest.fail("encoded again"))


def test_codes_are_counted_with_those_never_chosen():
    use = CodeUse.of((torch.tensor([[[0, 2], [2, 2]]]),), (4,))
    assert use.counts[0].tolist() == [1, 0, 3, 0]
    assert (use + use).counts[0].tolist() == [2, 0, 6, 0]
    assert (use + use).pictures == 2
    ((share, _),) = use.usage()
    assert share == 0.5


def test_their_use_is_that_of_their_pictures(whole: Path):
    codes, pipe = open_source(encode(whole), codes=True), golden_pipeline("class_parallel")
    own = pipe.encode(torch.from_numpy(make_pixels(COUNT, side=64)).permute(0, 3, 1, 2) / 127.5 - 1)
    expected = CodeUse.of(own, pipe.config.vae.codebook_sizes)
    found = use_of_stored(codes, pipe.config.vae)
    parts = [use_of_stored(codes, pipe.config.vae, span) for span in spans(COUNT, 3)]
    for use in (found, parts[0] + parts[1] + parts[2]):
        assert use.pictures == COUNT
        assert all(map(torch.equal, use.counts, expected.counts))


def test_reconstructions_of_stored_codes_are_those_of_pictures(whole: Path, extractor: Extractor, never_encoding):
    pipe = golden_pipeline("class_parallel")
    expected = measure_reconstructions(pipe, open_pictures(whole), extractor)
    pictures, stored, _ = open_coded(str(encode(whole)), [str(whole)], pipe.vae)
    never_encoding()
    state = measure_reconstructions(pipe, pictures, extractor, batch=2, stored=stored)
    assert state.psnr == pytest.approx(expected.psnr, rel=1e-6)
    assert state.rfid() == pytest.approx(expected.rfid(), rel=1e-6)
    assert all(map(torch.equal, state.use.counts, expected.use.counts))


def test_the_command_leaves_out_what_has_no_codes(run, script, damaged: Path, tmp_path: Path):
    arguments = ("--reference", damaged, "--codes", encode(damaged), "--features", script, "--dtype", "fp32")
    found = run("evaluate", "--reconstruct", CASE, *arguments, "--out", tmp_path / "codes.json")
    assert found.code == 0, found.err
    assert f"{damaged}: 1 of 7 pictures without codes" in " ".join(found.err.split())
    assert "6 pictures of 64 pixels" in found.out
    (damaged / f"{BROKEN:05d}.png").unlink()
    plain = ("--reference", damaged, "--features", script, "--dtype", "fp32", "--out", tmp_path / "pictures.json")
    assert run("evaluate", "--reconstruct", CASE, *plain).code == 0
    one, other = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("codes.json", "pictures.json"))
    for key, metric in other.items():
        assert one[key]["value"] == pytest.approx(metric["value"], rel=1e-6), key


def test_the_use_of_codes_alone(run, whole: Path, tmp_path: Path, never_encoding, monkeypatch):
    codes = encode(whole)
    never_encoding()
    monkeypatch.setattr("hqtvae_fast.evaluate.open_extractor", lambda *_: pytest.fail("a network was opened"))
    found = run("evaluate", "--reconstruct", CASE, "--codes", codes, "--out", tmp_path / "use.json")
    assert found.code == 0, found.err
    metrics = json.loads((tmp_path / "use.json").read_text())["metrics"]
    assert set(metrics) == {"usage_0", "perplexity_0", "usage_1", "perplexity_1"}
    use = use_of_stored(open_source(codes, codes=True), golden_pipeline("class_parallel").config.vae)
    assert metrics["usage_1"]["value"] == use.usage()[1][0]
    assert "7 pictures of 64 pixels" in found.out


def test_usage_is_drawn_from_codes(run, whole: Path, tmp_path: Path, never_encoding):
    pytest.importorskip("matplotlib", reason="the 'eval' extra is not installed")
    codes, pictures = encode(whole), tmp_path / "pictures.png"
    assert run("figure", "usage", CASE, "--pictures", whole, "--device", "cpu", "--out", pictures).code == 0
    never_encoding()
    found = run("figure", "usage", CASE, "--pictures", codes, "--device", "cpu", "--out", tmp_path / "codes.png")
    assert found.code == 0, found.err
    assert (tmp_path / "codes.png").read_bytes() == pictures.read_bytes()


@pytest.mark.parametrize("command", ["evaluate", "figure"])
def test_another_vaes_codes_are_refused(run, whole: Path, command: str):
    codes = encode(whole, "class_sequential")
    arguments = (
        ("usage", CASE, "--pictures", codes) if command == "figure" else ("--reconstruct", CASE, "--codes", codes)
    )
    found = run(command, *arguments, "--device", "cpu")
    assert found.code == 2
    assert "expected codes of this HQ-VAE" in found.err


def test_what_does_not_fit_is_refused(run, script, whole: Path, tmp_path: Path):
    codes, other = encode(whole), write_folder(tmp_path / "other", make_pixels(COUNT + 1, side=64))
    np.savez(tmp_path / "set.npz", make_pixels(COUNT, side=64))
    for reference, message in (
        (other, "expected codes of these pictures"),
        (tmp_path / "set.npz", "--codes: expected the pictures that were encoded, a folder or shards; got"),
    ):
        arguments = ("--reference", reference, "--codes", codes, "--features", script)
        found = run("evaluate", "--reconstruct", CASE, *arguments)
        assert found.code == 2
        assert message in " ".join(found.err.split())
    for arguments, message in (
        (("--codes", codes), "--codes: expected --reconstruct CHECKPOINT beside it; got none"),
        (("--codes", whole, "--reconstruct", CASE), "expected shards of codes; got pictures"),
    ):
        found = run("evaluate", *arguments)
        assert found.code == 2
        assert message in found.err

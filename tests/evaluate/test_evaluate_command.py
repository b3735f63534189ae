"""The command: tables, files, warnings and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from .conftest import make_pixels, write_folder, write_shard

CASE = Path(__file__).parents[1] / "golden" / "class_parallel"
CLIP = Path(__file__).parent / "golden" / "clip"


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    np.savez(tmp_path / "reference.npz", make_pixels(40))
    return tmp_path / "reference.npz", write_folder(tmp_path / "samples", make_pixels(30, seed=1))


def test_the_same_figures_from_pictures_and_from_saved_statistics(run, script, sets, tmp_path):
    reference, samples = sets
    common = ("--samples", samples, "--features", script)
    first = run("evaluate", "--reference", reference, *common, "--save-reference", "ref.npz", "--out", "a.json")
    assert first.code == 0, first.err
    second = run("evaluate", "--reference", "ref.npz", *common, "--out", "b.json")
    assert second.code == 0, second.err
    one, other = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert set(one["metrics"]) == {"frechet", "kernel", "precision", "recall"}
    for key, metric in one["metrics"].items():
        assert other["metrics"][key]["value"] == pytest.approx(metric["value"], rel=1e-12), key
    assert one["extractor"].startswith("pooled.pt ")
    assert "30 pictures of 16 pixels" in first.out
    assert "it is not FID" in first.err
    assert "30 pictures: published figures are of 50,000" in first.err


def test_adms_reference_batches_give_statistics_and_pictures(run, sets, tmp_path, monkeypatch):
    """Their mu and sigma are of more pictures than they hold; precision and recall are of those they hold."""
    from hqtvae_fast.evaluate import Extractor
    from hqtvae_fast.evaluate import open_extractor as open_any

    def as_fid(spec: str, device: str) -> Extractor:
        return replace(open_any(spec, device), is_fid=True)

    monkeypatch.setattr("hqtvae_fast.evaluate.open_extractor", as_fid)
    np.savez(tmp_path / "adm.npz", make_pixels(40), mu=np.full(12, 0.5), sigma=np.eye(12) / 100, mu_s=np.zeros(3))
    common = ("--samples", sets[1], "--features", f"{__package__}.conftest:pooled")
    found = run("evaluate", "--reference", tmp_path / "adm.npz", *common, "--out", "adm.json")
    assert found.code == 0, found.err
    metrics = json.loads(Path("adm.json").read_text())["metrics"]
    assert "30 samples, an unknown number of references" in metrics["frechet"]["of"]
    assert "30 samples, 40 references" in metrics["precision"]["of"]
    plain = run("evaluate", "--reference", sets[0], *common, "--out", "plain.json")
    assert plain.code == 0, plain.err
    other = json.loads(Path("plain.json").read_text())["metrics"]
    assert metrics["recall"]["value"] == other["recall"]["value"]
    assert metrics["frechet"]["value"] != pytest.approx(other["frechet"]["value"])


def test_captions_give_a_clip_score(run, script, sets, tmp_path):
    shard = write_shard(tmp_path / "drawn.tar", make_pixels(6, side=32), ["a red cube", "dog"] * 3)
    found = run("evaluate", "--reference", sets[0], "--samples", shard, "--features", script, "--clip", CLIP)
    assert found.code == 0, found.err
    assert "CLIP-score ↑" in found.out
    assert "6 captions" in found.out
    assert "6 pictures for features 12 wide" in found.err


def test_reconstructions(run, script, tmp_path):
    folder = write_folder(tmp_path / "set", make_pixels(6, side=64))
    common = ("--features", script, "--dtype", "fp32", "--device", "cpu")
    found = run("evaluate", "--reference", folder, "--reconstruct", CASE, *common)
    assert found.code == 0, found.err
    for name in ("reconstruction Fréchet distance, pooled.pt", "PSNR, dB", "SSIM", "bottom codes: perplexity"):
        assert name in found.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "expected --reference, and one of"),
        (("--reference", "x", "--samples", "y", "--reconstruct", "z"), "expected --reference, and one of"),
        (("--reference", "x"), "expected --reference, and one of"),
        (("--reference", "none.npz", "--samples", "SAMPLES"), "none.npz: no such file"),
        (("--reference", "none/", "--samples", "SAMPLES"), "no such file"),
        (("--reference", "x", "--samples", "SAMPLES", "--features", "vgg"), "features: expected inception:FILE"),
        (("--reference", "REFERENCE", "--samples", "SAMPLES", "--clip", "."), "config.json: no such file"),
    ],
)
def test_errors_are_one_line(run, script, sets, arguments, message, monkeypatch):
    monkeypatch.chdir(sets[0].parent)
    given = [{"SAMPLES": str(sets[1]), "REFERENCE": str(sets[0])}.get(value, value) for value in arguments]
    features = () if "--features" in arguments else ("--features", script)
    found = run("evaluate", *given, *features)
    assert found.code == 2
    errors = [line for line in found.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in found.err


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

"""Numbers that others computed, and what is computed from them: finite and right, or an error that names the file."""

from __future__ import annotations

import json
import math
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hqtvae_fast.cli import main
from hqtvae_fast.evaluate import (
    Extractor,
    Gaussian,
    frechet_distance,
    measure,
    open_pictures,
    precision_recall,
    read_reference,
)
from hqtvae_fast.evaluate.class_score import ClassSums
from hqtvae_fast.evaluate.kernel_distance import kernel_distance, squared_discrepancy
from hqtvae_fast.evaluate.report import Metric, document

WIDTH, SIDE = 12, 16
CLIP = Path(__file__).parent.parent / "evaluate" / "golden" / "clip"


class Pooled(nn.Module):
    """Means of a 2x2 grid: 12 features. White pictures have features that are not numbers."""

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) / 255
        return torch.where(features == 1, torch.nan, features)


def pooled() -> nn.Module:
    """What ``--features`` names: a factory as a user writes it."""
    return Pooled()


EXTRACTOR = Extractor(Pooled(), "pooled", torch.device("cpu"))


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir()
    coarse = np.random.default_rng(seed).integers(0, 250, (count, 4, 4, 3), dtype=np.uint8)
    for index, pixels in enumerate(coarse.repeat(4, axis=1).repeat(4, axis=2)):
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``hqtvae evaluate`` on features of 12 numbers: exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def call(*arguments: object) -> tuple[int, str]:
        features = () if "--features" in arguments else ("--features", "test_statistics:pooled")
        code = main(["evaluate", *map(str, arguments), *features, "--device", "cpu"])
        out, err = capsys.readouterr()
        return code, out + err

    return call


def sound() -> dict[str, np.ndarray]:
    features = np.random.default_rng(0).normal(size=(40, WIDTH))
    names = {"count": np.int64(40), "extractor": np.str_("pooled"), "resolution": np.int64(SIDE)}
    return {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False), "features": features[:9], **names}


def changed(name: str, place: tuple[int, ...], value: float) -> np.ndarray:
    array = sound()[name].copy()
    array[place] = value
    return array


DAMAGED = {
    "nan in mu": ("mu", changed("mu", (3,), np.nan), r"mu: expected finite values; got nan at \[3\]"),
    "inf in mu": ("mu", changed("mu", (0,), np.inf), r"mu: expected finite values; got inf at \[0\]"),
    "nan in sigma": ("sigma", changed("sigma", (1, 2), np.nan), r"sigma: expected finite values; got nan at \[1, 2\]"),
    "asymmetric": ("sigma", changed("sigma", (1, 2), 1e6), "sigma: expected a symmetric matrix"),
    "negative": ("sigma", np.diag([-1.0] + [1.0] * (WIDTH - 1)), "sigma: expected no negative eigenvalue; got -1"),
    "narrow": ("sigma", np.eye(WIDTH - 1), r"mu, sigma: expected a mean \[d\] and a covariance \[d, d\]"),
    "flat": ("sigma", np.zeros(WIDTH), r"sigma: expected numbers \[d, d\]; got float64 \[12\]"),
    "text": ("mu", np.array(["a"] * WIDTH), r"mu: expected numbers \[d\]; got <U1"),
    "complex": ("sigma", np.eye(WIDTH) * 1j, r"sigma: expected numbers \[d, d\]; got complex128"),
    "features": ("features", changed("features", (8, 1), np.nan), r"features: expected finite values; got nan"),
    "huge features": ("features", changed("features", (0, 1), 1e200), r"features: expected finite values; got inf"),
    "other features": ("features", np.zeros((4, WIDTH + 1)), r"features: expected \[n, 12\]"),
    "count": ("count", np.float64("inf"), "count: expected an integer of 0 or more; got inf"),
    "resolution": ("resolution", np.int64(-3), "resolution: expected an integer of 1 or more; got -3"),
    "name": ("extractor", np.int64(3), "extractor: expected text"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_F2_damaged_statistics_are_an_error_that_names_file_and_array(tmp_path, case):
    name, array, message = DAMAGED[case]
    np.savez(tmp_path / "stats.npz", **{**sound(), name: array})
    with pytest.raises(ValueError, match=rf"stats\.npz: {message}"):
        read_reference(tmp_path / "stats.npz")


def test_F2_sound_statistics_are_read_as_they_are(tmp_path):
    single = {name: array.astype(np.float32) if array.ndim else array for name, array in sound().items()}
    short = np.random.default_rng(1).normal(size=(5, WIDTH)).astype(np.float32)  # a covariance of rank 4
    for arrays in (sound(), single, {"mu": short.mean(0), "sigma": np.cov(short, rowvar=False).astype(np.float32)}):
        np.savez(tmp_path / "stats.npz", **arrays)
        known = read_reference(tmp_path / "stats.npz")
        np.testing.assert_array_equal(known.gaussian.mean, arrays["mu"].astype(np.float64))
        np.testing.assert_array_equal(known.gaussian.covariance, arrays["sigma"].astype(np.float64))
        assert frechet_distance(known.gaussian, known.gaussian) == pytest.approx(0, abs=1e-5)


def test_F2_no_score_comes_of_numbers_that_are_none(run, tmp_path):
    samples = write_pictures(tmp_path / "samples", 20)
    for case in ("nan in mu", "inf in mu", "nan in sigma", "asymmetric"):
        name, array, _ = DAMAGED[case]
        np.savez(tmp_path / "stats.npz", **{**sound(), "extractor": np.str_("test_statistics:pooled"), name: array})
        code, said = run("--reference", "stats.npz", "--samples", samples, "--out", "m.json")
        assert code == 2, said
        assert f"error: stats.npz: {name}: expected" in said
        assert not (tmp_path / "m.json").exists()


def test_F2_the_distance_of_what_overflows_is_an_error():
    huge = Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64) * 1e200)
    far = Gaussian(torch.full((2,), 1e200, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    for one, other in ((huge, huge), (far, Gaussian(-far.mean, far.covariance))):
        with pytest.raises(ValueError, match="sigma: expected"):
            frechet_distance(one, other)


def test_F2_features_that_are_no_numbers_name_the_picture(run, tmp_path):
    samples = write_pictures(tmp_path / "samples", 20)
    Image.new("RGB", (SIDE, SIDE), "white").save(samples / "007.png")
    with pytest.raises(ValueError, match=r"007.*: pooled: features: expected finite values; got NaN or infinity"):
        measure(open_pictures(samples), EXTRACTOR)
    code, said = run("--reference", samples, "--samples", samples)
    assert code == 2
    assert "007" in said
    with pytest.raises(ValueError, match=r"samples: expected finite values; got nan at \[2, 1\]"):
        precision_recall(torch.zeros(5, 2), torch.tensor([[0.0, 1]] * 2 + [[0, torch.nan]] * 3))


def test_F2_json_has_null_where_there_is_no_number():
    metrics = [Metric("psnr", "PSNR", math.inf, "higher"), Metric("x", "x", 1.0, "lower", deviation=math.nan)]
    rows = json.loads(json.dumps(document(metrics, {}), allow_nan=False))["metrics"]
    assert rows["psnr"]["value"] is None
    assert (rows["x"]["value"], rows["x"]["deviation"]) == (1.0, None)


# ------------------------------------------------------------------------------------------------------ new figures


def test_missing_precision_of_too_few_pictures_does_not_cost_the_distance(run, tmp_path):
    reference, samples = write_pictures(tmp_path / "reference", 20), write_pictures(tmp_path / "samples", 3, seed=1)
    code, said = run("--reference", reference, "--samples", samples, "--out", "m.json")
    assert code == 0, said
    assert "note: no precision and recall: expected more than k=3 pictures in each set; got 3" in said
    assert json.loads((tmp_path / "m.json").read_text())["metrics"].keys() == {"frechet", "kernel"}


def features(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def discrepancy(one: np.ndarray, other: np.ndarray) -> float:
    """Term by term, as the paper has it."""
    kernel = lambda x, y: (float(x @ y) / len(x) + 1) ** 3  # noqa: E731
    m, n = len(one), len(other)
    own = sum(kernel(one[i], one[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    its = sum(kernel(other[i], other[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return own + its - 2 * sum(kernel(x, y) for x in one for y in other) / (m * n)


def test_missing_kernel_distance_against_its_definition():
    one, other = features(9, 0), features(7, 1, shift=0.5)
    assert float(squared_discrepancy(one, other)) == pytest.approx(discrepancy(one.numpy(), other.numpy()), rel=1e-12)


@pytest.mark.slow
def test_missing_kernel_distance_against_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    one, other = features(60, 0), features(60, 1, shift=0.3)
    wanted = float(kid.poly_mmd(one, other, degree=3, gamma=None, coef=1.0))
    found = kernel_distance(one, other)
    assert found.mean == pytest.approx(wanted, rel=1e-12)
    assert (found.deviation, found.subsets, found.size) == (0, 1, 60)


def test_missing_kernel_distance_is_unbiased_and_seeded():
    one, other = features(400, 0), features(300, 1)
    found = kernel_distance(one, other, subsets=40, size=100)
    assert abs(found.mean) < 4 * found.deviation / 40**0.5 + 0.02, "of one distribution: about 0"
    assert found.deviation > 0
    assert found == kernel_distance(one, other, subsets=40, size=100)
    assert found != kernel_distance(one, other, subsets=40, size=100, seed=1)
    moved = kernel_distance(one, other + 0.5, subsets=40, size=100)
    assert moved.mean > 20 * abs(found.mean)
    with pytest.raises(ValueError, match="at least 2 features in each set"):
        kernel_distance(one[:1], other)


def class_score(logits: np.ndarray) -> tuple[float, float]:
    """In float64, split by split."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    parts = [p[first::10] for first in range(10) if len(p[first::10])]
    scores = [np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


@pytest.mark.parametrize("count", [3, 57])
def test_missing_class_score_against_its_definition_in_any_parts(count):
    logits = 3 * features(count, 2)
    parts = [range(0, count // 3), range(count // 3, count)]
    whole = reduce(add, (ClassSums.of(logits[list(part)], part) for part in reversed(parts)))
    assert whole.score() == pytest.approx(class_score(logits.numpy()), rel=1e-9)


@pytest.mark.slow
def test_missing_class_score_against_torchmetrics():
    inception = pytest.importorskip("torchmetrics.image.inception")

    class Given(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    metric = inception.InceptionScore(feature=Given(), splits=1)
    logits = 2 * features(64, 3).float()
    metric.update(logits.view(64, 16, 1, 1))
    one_split = [index * 10 for index in range(64)]
    assert ClassSums.of(logits, one_split).score()[0] == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def test_missing_class_score_of_sure_and_unsure_pictures():
    sure = torch.eye(8, dtype=torch.float64).repeat_interleave(10, dim=0) * 1000
    assert ClassSums.of(sure, range(80)).score() == pytest.approx((8, 0))
    assert ClassSums.of(torch.zeros(80, 8), range(80)).score() == pytest.approx((1, 0))


@pytest.mark.slow
def test_missing_the_package_s_network_classifies(run, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    from hqtvae_fast.evaluate import open_extractor
    from hqtvae_fast.evaluate.extractors.efficientnet import EfficientNetLogits, load_efficientnet

    extractor = open_extractor("efficientnet-lite0")
    samples = open_pictures(write_pictures(tmp_path / "samples", 3))
    (batch,) = samples.batches(3)
    with torch.no_grad():
        expected = EfficientNetLogits(load_efficientnet())(batch.images)
    torch.testing.assert_close(extractor.logits(extractor(batch.images)), expected)
    code, said = run("--samples", tmp_path / "samples", "--features", "efficientnet-lite0", "--out", "m.json")
    assert code == 0, said
    found = json.loads((tmp_path / "m.json").read_text())["metrics"]["class_score"]
    assert found["name"] == "class score, efficientnet-lite0"
    assert 1 <= found["value"] <= 3


def test_T11_a_clip_score_needs_no_reference(run, tmp_path):
    samples = write_pictures(tmp_path / "samples", 4)
    captions = {f"{index:03d}.png": "a red cube" for index in range(4)}
    (samples / "captions.json").write_text(json.dumps(captions))
    code, said = run("--samples", samples, "--clip", CLIP, "--caption", "{caption}", "--out", "m.json")
    assert code == 0, said
    assert json.loads((tmp_path / "m.json").read_text())["metrics"].keys() == {"clip_score"}
    code, said = run("--samples", samples)
    assert code == 2
    assert "expected --reference or --clip; test_statistics:pooled alone gives no score of samples" in said


def test_F21_what_save_reference_wrote_is_read_under_any_name(run, tmp_path):
    reference, samples = write_pictures(tmp_path / "reference", 20), write_pictures(tmp_path / "samples", 20, seed=1)
    assert run("--reference", reference, "--samples", samples, "--out", "a.json")[0] == 0
    assert run("--reference", reference, "--save-reference", "stats")[0] == 0
    code, said = run("--reference", "stats", "--samples", samples, "--out", "b.json")
    assert code == 0, said
    one, other = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("a.json", "b.json"))
    assert one == other

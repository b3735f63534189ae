"""What is kept is what sorting all scores would keep; the command keeps the same pictures as drawing all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from hqtvae_fast.evaluate.extractors.clip import load_clip
from hqtvae_fast.evaluate.rejection import (
    Candidate,
    Classifier,
    Counters,
    OnImageNet,
    Pool,
    Reader,
    best_of,
    candidates_for,
    open_judge,
)

CASE = Path(__file__).parents[1] / "golden" / "class_parallel"
CLIP = Path(__file__).parent / "golden" / "clip"


class Brightness(nn.Module):
    """Two classes: 0 is dark, 1 is bright."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.float().mean(dim=(1, 2, 3)) / 255
        return torch.stack([-bright, bright], dim=1)


def brightness() -> nn.Module:
    return Brightness()


def judge() -> Classifier:
    return Classifier(Brightness(), "brightness", torch.device("cpu"))


def flat(value: int) -> Tensor:
    return torch.full((3, 4, 4), value, dtype=torch.uint8)


@given(
    values=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    capacity=st.integers(1, 8),
)
def test_a_pool_keeps_the_best_and_of_equals_the_earlier(values: list[int], capacity: int):
    pool: Pool[int] = Pool(capacity)
    for number, value in enumerate(values):
        pool.offer(value, number, number)
        assert len(pool._heap) <= capacity
    wanted = sorted(range(len(values)), key=lambda number: (-values[number], number))[:capacity]
    assert [item for _, item in pool.best()] == wanted


@given(
    brightness=st.lists(st.integers(0, 255), min_size=12, max_size=12),
    order=st.permutations(range(12)),
    batch=st.integers(1, 13),
)
@settings(deadline=None, max_examples=50)
def test_the_best_of_each_condition_whatever_the_order(brightness: list[int], order: list[int], batch: int):
    # Three conditions, four candidates each; the second wants dark pictures.
    given_ = [Candidate(i // 4, 0 if i // 4 == 1 else 1, flat(brightness[i]), i) for i in order]
    counters = Counters()
    found = list(best_of(given_, judge(), drawn=4, kept=2, batch=batch, counters=counters))
    assert (counters.seen, counters.kept) == (12, 6)
    for group in range(3):
        own = [brightness[item] for _, item in found if item // 4 == group]
        best = sorted((brightness[i] for i in range(4 * group, 4 * group + 4)), reverse=group != 1)
        assert own == best[:2]


def test_scores_are_log_probabilities():
    images = torch.stack([flat(0), flat(255)])
    found = judge().scores(images, [1, 1])
    wanted = Brightness()(images).log_softmax(dim=1)[:, 1]
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match=r"brightness: expected classes from 0 to 1; got 0\.\.7"):
        judge().scores(images, [0, 7])


def test_a_network_that_fails_is_not_ranked():
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), torch.nan)

    broken = Classifier(Broken(), "broken", torch.device("cpu"))
    with pytest.raises(ValueError, match="broken: expected finite scores; got nan for 1"):
        list(best_of([Candidate(0, 1, flat(9), 0)], broken, drawn=1, kept=1))


@pytest.mark.parametrize("kept, acceptance, drawn", [(50, 0.25, 200), (3, 0.3, 10), (7, 1, 7), (1, 0.4, 3)])
def test_how_many_are_drawn(kept: int, acceptance: float, drawn: int):
    assert candidates_for(kept, acceptance) == drawn


@pytest.mark.parametrize("acceptance", [0, -0.5, 1.5])
def test_a_share_is_a_share(acceptance: float):
    with pytest.raises(ValueError, match="expected above 0 and at most 1"):
        candidates_for(10, acceptance)


def test_clip_reads_prompts():
    reader = open_judge(f"clip:{CLIP}")
    assert isinstance(reader, Reader)
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    captions = ["a red cube", "dog"]
    torch.testing.assert_close(reader.scores(images, captions), load_clip(CLIP).similarities(images, captions))


def test_imagenets_normalization_goes_before_the_network():
    seen = []

    class Watching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.mean(dim=(2, 3))

    OnImageNet(Watching())(flat(255)[None])
    assert seen[0].shape == (1, 3, 224, 224)
    wanted = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0][0, :, 7, 9], wanted)


def test_the_command_keeps_the_brightest(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("sample", CASE, "--classes", "1,0", "--dtype", "fp32", "--device", "cpu", "--seed", 3)
    every = run(*common, "--num-images", 6, "--out-dir", "every")
    assert every.code == 0, every.err
    kept = run(
        *common, "--num-images", 2, "--accept", 1 / 3, "--classifier", f"{__name__}:brightness", "--targets", "1,0",
        "--out-dir", "kept", "--save-codes", "kept.safetensors",
    )  # fmt: skip
    assert kept.code == 0, kept.err
    assert f"kept 4 of 12 candidates by {__name__}:brightness" in kept.out
    for label, sign in ((1, 1), (0, -1)):
        drawn = {file.name: _brightness(file) for file in Path("every").glob(f"class-{label:04d}-*")}
        best = sorted(drawn, key=lambda name: -sign * drawn[name])[:2]
        assert {file.name for file in Path("kept").glob(f"class-{label:04d}-*")} == set(best)
        for name in best:  # the picture is the same, with its seed
            assert (Path("kept") / name).read_bytes() == (Path("every") / name).read_bytes()
    from safetensors import safe_open

    with safe_open("kept.safetensors", "pt") as file:
        assert file.get_tensor("level_0").shape[0] == 4
        assert len(json.loads(file.metadata()["names"])) == 4


def _brightness(file: Path) -> float:
    with Image.open(file) as image:
        return float(torch.tensor(list(image.convert("RGB").tobytes())).double().mean())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--classes", "0", "--classifier", "resnet"), "classifier: expected efficientnet-lite0, clip:DIR"),
        (("--classes", "0", "--classifier", f"clip:{CLIP}"), "clip clip reads prompts, and there are none"),
        (("--classes", "0,1", "--classifier", f"{__name__}:brightness", "--targets", "1"), "expected 2"),
        (("--classes", "0", "--targets", "1"), "--targets: expected --classifier"),
        (("--classes", "0", "--classifier", f"{__name__}:brightness", "--accept", "0"), "expected above 0"),
        (("--classes", "0", "--classifier", f"{__name__}:brightness", "--top-only"), "judges whole pictures"),
        (("--classes", "0", "--classifier", f"{__name__}:brightness", "--targets", "5"), "classes from 0 to 1"),
    ],
)  # fmt: skip
def test_errors_are_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    found = run("sample", CASE, *arguments, "--dtype", "fp32", "--device", "cpu")
    assert found.code == 2
    assert found.err.startswith("error: ")
    assert message in found.err

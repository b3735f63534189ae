"""States of parts add up to the state of the whole, whoever measured which part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hqtvae_fast.evaluate import Reference, frechet_distance, measure, merge, open_pictures, precision_recall, spans
from hqtvae_fast.evaluate.extractors.clip import load_clip
from hqtvae_fast.evaluate.kernel_distance import kernel_distance
from hqtvae_fast.evaluate.report import compare
from hqtvae_fast.evaluate.set_state import is_kept

from .conftest import make_pixels, write_folder, write_shard

CLIP = Path(__file__).parent / "golden" / "clip"


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("keep", [0, 7, 100])
def test_parts_in_any_order_are_the_whole(tmp_path, extractor, parts: int, keep: int):
    pictures = open_pictures(write_folder(tmp_path / "set", make_pixels(23)))
    whole = measure(pictures, extractor, keep=keep, batch=64)
    shared = [measure(pictures, extractor, span, keep=keep, batch=3) for span in spans(23, parts)]
    joined = merge(reversed(shared))
    assert joined.moments.count == 23
    torch.testing.assert_close(joined.moments.scatter, whole.moments.scatter, rtol=1e-12, atol=1e-12)
    assert torch.equal(joined.features(), whole.features())
    assert len(whole.features()) == min(keep, 23)


@given(st.integers(1, 400), st.integers(0, 500))
def test_what_is_kept_is_as_many_as_asked_for(total: int, limit: int):
    kept = [index for index in range(total) if is_kept(index, total, limit)]
    assert len(kept) == min(limit, total)
    if kept:
        gaps = np.diff([*kept, kept[0] + total])
        assert gaps.max() - gaps.min() <= 1


@given(st.integers(0, 300), st.integers(1, 20))
def test_spans_cover_everything_once(total: int, parts: int):
    assert [index for span in spans(total, parts) for index in span] == list(range(total))


def test_captions_are_compared_in_parts_too(tmp_path, extractor):
    captions = ["a red cube", "a blue sphere", "the green cat", "dog", "a cat on the dog"]
    pixels = make_pixels(5, side=32)
    pictures = open_pictures(write_shard(tmp_path / "set.tar", pixels, captions))
    clip = load_clip(CLIP)
    joined = merge(measure(pictures, extractor, span, clip=clip, batch=2) for span in spans(5, 2))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    wanted = [float(clip.similarities(images[i : i + 1], [captions[i]])[0]) for i in range(5)]
    assert joined.clip_score() == pytest.approx(np.mean(wanted), abs=1e-6)
    assert measure(pictures, extractor).clip_score() is None


def test_the_report_says_what_was_computed(tmp_path, extractor):
    one = measure(open_pictures(write_folder(tmp_path / "one", make_pixels(30))), extractor, keep=30)
    other = measure(open_pictures(write_folder(tmp_path / "other", make_pixels(20, seed=1))), extractor, keep=20)
    metrics = {metric.key: metric for metric in compare(Reference.of(one), other, extractor, k=2)}
    assert metrics["frechet"].name == "Fréchet distance, pooled"
    assert metrics["frechet"].value == frechet_distance(one.moments.gaussian(), other.moments.gaussian())
    found = precision_recall(one.features(), other.features(), k=2)
    assert (metrics["precision"].value, metrics["recall"].value) == found
    assert metrics["kernel"].value == kernel_distance(one.features(), other.features()).mean
    assert set(metrics) == {"frechet", "kernel", "precision", "recall"}


def test_parts_measured_differently_do_not_add_up(tmp_path, extractor):
    pixels = make_pixels(4)
    one = measure(open_pictures(write_folder(tmp_path / "one", pixels)), extractor)
    other = measure(open_pictures(tmp_path / "one", resolution=8), extractor)
    with pytest.raises(ValueError, match="measured alike"):
        merge([one, other])
    with pytest.raises(ValueError, match="got none"):
        merge([])

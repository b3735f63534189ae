"""Completing pictures: what is kept stays, the rest is drawn as ever, captured or not, in any batch and company."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from conftest import CASES, GOLDEN, golden_pipeline
from conftest import engine as plan_of
from PIL import Image
from test_guidance import guided_pipeline

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.config import PRESETS
from hqtvae_fast.engine import Known, SamplingParams, draw_codes
from hqtvae_fast.engine.graph import DrawReplay
from hqtvae_fast.engine.step import ReferenceStep
from hqtvae_fast.seeds import image_seeds
from hqtvae_fast.tune.launches import count_launches

QUIET = {"output_type": "codes", "progress": False, "temperature": 0.9}
DRAWN = [name for name in CASES if not name.startswith("stage1")]
FUSED = ("class_parallel", "class_level3", "text_parallel")


@functools.cache
def planned(plan: str) -> HQTVAEPipeline:
    return HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32", plan=plan_of(plan))


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def windows(side: int, seed: int = 0) -> torch.Tensor:
    """Half of them, anywhere."""
    return torch.rand(side, side, generator=torch.Generator().manual_seed(seed)) < 0.5


def on_level(mask: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    step = level.shape[-1] // len(mask)
    return mask.repeat_interleave(step, 0).repeat_interleave(step, 1)


def keeping(codes, mask) -> Known:
    return Known(codes, [on_level(mask, level).expand(len(level), -1, -1) for level in codes])


def condition_of(config, count: int) -> torch.Tensor | None:
    shape = {"none": None, "class": (count,)}.get(config.condition, (count, config.prefix_length))
    return None if shape is None else torch.ones(shape, dtype=torch.int64)


def ask(case="class_parallel", pipe=None, **options):
    labels = {} if "class_labels" in options else {"class_labels": [4]}
    return (pipe or golden_pipeline(case))(**{**QUIET, **labels, **options}).codes


@pytest.mark.parametrize(
    "case,engine", [*((case, "reference") for case in DRAWN), *((case, "fused") for case in FUSED)]
)
def test_kept_codes_stay_and_a_completion_of_a_drawing_by_its_seed_is_that_drawing(case, engine):
    model, step = golden_pipeline(case).transformer, {"engine": engine}
    levels, condition = model.config.num_levels, condition_of(model.config, 2)
    params = SamplingParams((1.0,) * levels, (None,) * levels, (None,) * levels)
    drawn = draw_codes(model, condition, image_seeds(5, 2), params, **step)
    mask = windows(model.config.side)
    assert same(drawn, draw_codes(model, condition, image_seeds(5, 2), params, known=keeping(drawn, mask), **step))
    other = draw_codes(model, condition, image_seeds(6, 2), params, known=keeping(drawn, mask), **step)
    plain = draw_codes(model, condition, image_seeds(6, 2), params, **step)
    for level, own, free in zip(other, drawn, plain, strict=True):
        stays = on_level(mask, level)
        assert torch.equal(level[:, stays], own[:, stays])
        assert not torch.equal(level[:, ~stays], own[:, ~stays])
        assert not torch.equal(level, free)
    first = model.config.side // 2  # rows: the codes before a mask are as they are without it
    late = mask.clone()
    late[:first] = False
    other = draw_codes(model, condition, image_seeds(6, 2), params, known=keeping(drawn, late), **step)
    assert all(torch.equal(a[:, : a.shape[1] // 2], b[:, : b.shape[1] // 2]) for a, b in zip(other, plain, strict=True))


def test_completion_is_drawn_from_what_is_kept():
    """The likeliest code of what the model says after the kept ones, at every place that is not."""
    pipe = guided_pipeline()
    model, params = pipe.transformer, SamplingParams((1.0, 1.0), (1, 1), (None, None))
    labels, mask = torch.tensor([2, 5]), windows(model.config.side)
    kept = [torch.randint(0, 20, (2, side, side)) for side in pipe.config.vae.level_sides]
    codes = draw_codes(model, labels, image_seeds(0, 2), params, known=keeping(kept, mask))
    with torch.no_grad():
        logits = model(codes, labels).levels
    for level, said in zip(codes, logits, strict=True):
        free = ~on_level(mask, level).flatten()
        assert torch.equal(said.argmax(dim=2)[:, free], level.flatten(1)[:, free])


@pytest.mark.parametrize("plan", ["", "tables", "skip_query", "fused_draw"])
def test_captured_completion_is_the_eager_one(plan):
    drawn = ask(num_images=3, seed=2)
    for keep in ("top-half", windows(drawn[0].shape[-1])):
        how = {"image": drawn, "keep": keep, "num_images": 3, "seed": 9}
        eager = ask(pipe=planned(f"uncaptured, {plan}".strip(", ")), **how)
        assert same(eager, ask(pipe=planned(f"captured, {plan}".strip(", ")), **how))


def test_a_capture_reads_masks_and_kept_codes_from_the_device():
    model, params = golden_pipeline("class_parallel").transformer, SamplingParams((0.9, 0.9), (40, None), (None, 0.9))
    replay, labels = DrawReplay(model, 3, completing=True), torch.tensor([1, 2, 3])
    for turn in range(3):
        seeds = image_seeds(turn, 3)
        codes = [torch.randint(0, 20, (3, side, side)) for side in (model.config.side, 2 * model.config.side)]
        known = keeping(codes, windows(model.config.side, turn))
        assert same(replay(labels, seeds, params, known=known), draw_codes(model, labels, seeds, params, known=known))
    with pytest.raises(ValueError, match="top codes drawn, some codes kept; got 3, top codes drawn"):
        replay(labels, seeds, params)
    with pytest.raises(ValueError, match=r"known: expected codes of 3 pictures.* got \[2\]"):
        replay(labels, seeds, params, known=Known(*([level[:2] for level in maps] for maps in known)))


@pytest.mark.parametrize("case", ["class_parallel", "class_sequential", "class_bidirectional", "class_level3"])
def test_completion_in_any_batch_and_company(case):
    drawn = ask(case, num_images=3, seed=1)
    masks = torch.stack([windows(drawn[0].shape[-1], seed) for seed in range(3)])
    together = ask(case, image=drawn, keep=masks, num_images=3, seed=7)
    assert same(together, ask(case, image=drawn, keep=masks, num_images=3, seed=7, batch_size=2))
    seeds = image_seeds(7, 3).tolist()
    alone = [
        ask(case, image=[level[row] for level in drawn], keep=masks[row], seed=[seed]) for row, seed in enumerate(seeds)
    ]
    assert same(together, tuple(torch.cat(levels) for levels in zip(*alone, strict=True)))


def test_completion_with_several_conditions_streams_and_guidance():
    drawn = ask(seed=1)
    how = {"class_labels": [1, 2], "num_images": 2, "seed": 3, "image": drawn, "keep": "left-half", "batch_size": 3}
    pipe = guided_pipeline()
    whole = ask(pipe=pipe, **how, guidance_scale=3.0)
    streamed = [image.codes for image in pipe.stream(**{**QUIET, **how, "guidance_scale": 3.0})]
    assert same(whole, tuple(torch.stack(level) for level in zip(*streamed, strict=True)))
    assert all(torch.equal(a[:, :, : a.shape[1] // 2].unique(dim=0), b[:, :, : b.shape[1] // 2])
               for a, b in zip(whole, drawn, strict=True))  # fmt: skip
    assert not same(whole, ask(pipe=pipe, **how))


def test_bottom_codes_of_a_region_are_drawn_again_alone(monkeypatch):
    pipe, drawn = golden_pipeline("class_parallel"), ask(seed=1)
    mask = windows(drawn[0].shape[-1])
    heads: list[range] = []
    head = ReferenceStep.head
    monkeypatch.setattr(
        ReferenceStep, "head", lambda step, h, codes, group: heads.append(group) or head(step, h, codes, group)
    )
    again = ask(seed=8, image=drawn, keep=(True, mask))
    assert range(1) not in heads  # no top code is drawn
    assert len(heads) == int((~mask).sum())  # nor anything where all stays
    assert torch.equal(again[0], drawn[0])
    stays = on_level(mask, drawn[1])
    assert torch.equal(again[1][:, stays], drawn[1][:, stays])
    assert not torch.equal(again[1], drawn[1])
    assert same(ask(seed=8, image=drawn, keep=(True, False)), ask(seed=8, given_top_codes=drawn[0]))
    assert same(pipe(4, **QUIET, image=drawn, keep=(True, True)).codes, drawn)


def test_pictures_are_completed_as_their_codes():
    pipe = golden_pipeline("class_parallel")
    R = pipe.config.vae.resolution
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (R, R, 3), dtype=np.uint8))
    codes = pipe.encode(picture)
    wanted = ask(image=codes, keep="top-half", seed=4)
    assert torch.equal(wanted[0][0, 0], codes[0][0, 0])
    pixels = np.zeros((2 * R, 2 * R), dtype=np.uint8)  # of a larger picture of the same shape
    pixels[: R + 1] = 255  # a row more is no window more
    for keep in (
        "top-half",
        Image.fromarray(pixels),
        np.arange(R)[:, None].repeat(R, 1) < R // 2,
        (np.True_, "top-half"),
    ):
        found = ask(image=picture, keep=keep, seed=4)
        assert same(found, wanted) or isinstance(keep, tuple), keep
    assert torch.equal(found[0], codes[0])


def test_two_checkpoints_complete_their_levels():
    pipe = HQTVAEPipeline.from_pretrained(
        GOLDEN / "global_top", refiner=GOLDEN / "global_bottom", device="cpu", dtype="fp32"
    )
    how = {} if pipe.transformer.config.condition == "none" else {"class_labels": [4]}
    drawn = pipe(**QUIET, **how, seed=1).codes
    mask = windows(drawn[0].shape[-1])
    for keep, stays in ((mask, (mask, mask)), ((True, mask), (torch.ones_like(mask), mask))):
        found = pipe(**QUIET, **how, seed=2, image=drawn, keep=keep).codes
        for level, own, kept in zip(found, drawn, stays, strict=True):
            place = on_level(kept, level)
            assert torch.equal(level[:, place], own[:, place])
    prior = golden_pipeline("global_top")
    assert torch.equal(prior(**QUIET, **how, seed=1, image=drawn, keep=mask).codes[0], drawn[0])
    bottom = golden_pipeline("global_bottom")
    assert same(bottom(**QUIET, seed=1, image=drawn, keep=(True, True)).codes, drawn)
    with pytest.raises(ValueError, match="keep: expected all of the top level, as this checkpoint draws bottom codes"):
        bottom(**QUIET, image=drawn, keep=mask)


@pytest.mark.parametrize(
    "asked,message",
    [
        ({"keep": "top-half"}, "image: expected a picture, with keep; got none"),
        ({"image": "codes"}, "keep: expected top-half, .*, with image; got none"),
        ({"image": "codes", "keep": "upper"}, "keep: expected top-half, bottom-half.* got 'upper'"),
        ({"image": "codes", "keep": 3}, "keep: expected .*; got int64 3|got 3"),
        ({"image": "codes", "keep": torch.ones(3, 3, dtype=torch.bool)}, r"expected a mask \[\d, \d\].* got \[3, 3\]"),
        ({"image": "codes", "keep": torch.zeros(4, 4)}, r"keep: expected .*; got float32 \[4, 4\]"),
        ({"image": "codes", "keep": (True,)}, "keep: expected one mask, or 2, one a level; got 1"),
        ({"image": "codes", "keep": (False, False)}, "keep: expected a mask that keeps a window"),
        ({"image": "codes", "keep": "top-half", "given_top_codes": 0}, "given_top_codes: expected none with image"),
        ({"image": "short", "keep": "top-half"}, "codes: expected 2 levels .* got 1"),
        ({"image": "five", "keep": "top-half"}, "image: expected 1; got 5"),
        ({"image": "no-such.png", "keep": "top-half"}, "no-such.png: no such file"),
        ({"image": 3, "keep": "top-half"}, "images: expected pictures"),
    ],
)
def test_completions_that_cannot_be(asked, message):
    drawn = ask(seed=1)
    several = [level.expand(5, -1, -1) for level in drawn]
    named = {"codes": drawn, "short": drawn[:1], "five": several}
    image = asked.get("image")
    with pytest.raises(ValueError, match=message):
        ask(**asked | ({} if image is None else {"image": named.get(image, image)}))


def test_masks_of_several_pictures_are_of_as_many():
    drawn = ask(num_images=3, seed=1)
    side = drawn[0].shape[-1]
    with pytest.raises(ValueError, match="keep: expected one mask, or one a picture, of 3 pictures; got 2"):
        ask(num_images=3, image=drawn, keep=torch.ones(2, side, side, dtype=torch.bool))


def test_a_kernel_a_draw_is_what_completion_takes():
    plain, completing = (
        count_launches(PRESETS["S"].transformer, "fused", batch=64, completing=kept) for kept in (False, True)
    )
    assert completing - plain == {"where": 2}
    assert not plain - completing

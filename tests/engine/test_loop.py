"""The sampling loop: equal codes however the work is split, given top codes, and honest refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import GOLDEN, golden_pipeline

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.checkpoint import build
from hqtvae_fast.config import BlocksConfig, TransformerConfig
from hqtvae_fast.engine import SamplingParams, decode_codes, draw_codes, loop
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.pyramid import to_local, to_maps
from hqtvae_fast.seeds import image_seeds

CONDITIONS = {
    "class_parallel": {"class_labels": [4]},
    "class_parallel_iet1": {"class_labels": [4]},
    "class_sequential": {"class_labels": [4]},
    "class_bidirectional": {"class_labels": [4]},
    "class_level3": {"class_labels": [4]},
    "uncond_reduce": {},
}


def draw(case, **options):
    request = {
        **CONDITIONS[case],
        "output_type": "codes",
        "progress": False,
        "top_k": 40,
        "temperature": 0.9,
        **options,
    }
    return golden_pipeline(case)(**request).codes


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("case", CONDITIONS)
def test_one_by_one_together_and_split_give_the_same_codes(case):
    together = draw(case, num_images=3, seed=11)
    split = draw(case, num_images=3, seed=11, batch_size=2)
    seeds = image_seeds(11, 3).tolist()
    alone = [draw(case, num_images=1, seed=[seed]) for seed in seeds]
    one_by_one = tuple(torch.cat(levels) for levels in zip(*alone, strict=True))
    assert same(together, split)
    assert same(together, one_by_one)
    assert not torch.equal(together[0][0], together[0][1])  # different seeds, different pictures


def test_order_and_company_do_not_matter():
    forward = draw("class_parallel", num_images=5, seed=list(range(5)))
    backward = draw("class_parallel", num_images=5, seed=list(range(4, -1, -1)))
    assert same(forward, [level.flip(0) for level in backward])


def test_condition_major_order():
    codes = golden_pipeline("class_parallel")([2, 5], num_images=2, seed=[1, 2, 1, 2], output_type="codes").codes
    alone = golden_pipeline("class_parallel")(5, num_images=2, seed=[1, 2], output_type="codes").codes
    assert same([level[2:] for level in codes], alone)


def test_seed_and_options_change_the_codes():
    base = draw("class_parallel", seed=0)
    assert not same(base, draw("class_parallel", seed=1))
    assert not same(base, draw("class_parallel", seed=0, temperature=5.0))


def test_parameters_a_level():
    greedy_top = draw("class_parallel", num_images=4, top_k=[1, 64])
    first_top, first_bottoms = greedy_top[0][:, 0, 0], greedy_top[1][:, :2, :2].flatten(1)
    assert len(first_top.unique()) == 1
    assert len(first_bottoms.unique(dim=0)) > 1


@pytest.mark.parametrize("case", [case for case in CONDITIONS if case != "uncond_reduce"])
def test_given_top_codes_are_kept(case):
    top = draw(case, seed=3)[0]
    drawn = draw(case, num_images=2, seed=4, given_top_codes=top[0])
    assert torch.equal(drawn[0], top.expand(2, -1, -1))
    assert not torch.equal(drawn[1][0], drawn[1][1])


@pytest.mark.parametrize("case", list(CONDITIONS))
def test_given_top_codes_leave_the_finer_ones_as_they_were_drawn(case):
    """The finer codes' noise and logits do not depend on whether the top codes were drawn or given."""
    drawn = draw(case, num_images=2, seed=3)
    num_images = 2 if CONDITIONS[case] else 1  # without a condition the given maps say how many pictures there are
    again = draw(case, num_images=num_images, seed=3, given_top_codes=drawn[0])
    assert same(drawn, again)


def test_cached_steps_equal_teacher_forcing():
    """Greedy codes are the argmax of the logits that one uncached pass gives for them."""
    for case in CONDITIONS:
        pipe = golden_pipeline(case)
        codes = draw(case, top_k=1, num_images=2)
        label = torch.tensor([4, 4]) if CONDITIONS[case] else None
        with torch.no_grad():
            logits = pipe.transformer(codes, label).levels
        for level, drawn in zip(logits, codes, strict=True):
            assert torch.equal(level.argmax(dim=2), drawn.flatten(1)), case


def tiny(**changes) -> HQTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        codebook_sizes=(16, 16, 16),
        side=2,
        dim=32,
        body=BlocksConfig(num_layers=1, num_heads=2),
        head=BlocksConfig(num_layers=1, num_heads=2),
        num_classes=3,
        max_positions=4,
    )
    model = HQTransformer(dataclasses.replace(config, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_three_levels_one_after_the_other():
    model = tiny(decoding="sequential")
    params = SamplingParams((1.0,) * 3, (1,) * 3, (None,) * 3)
    codes = draw_codes(model, torch.tensor([1, 2]), image_seeds(0, 2), params)
    with torch.no_grad():
        logits = model(codes, torch.tensor([1, 2])).levels
    for level, drawn in zip(logits, codes, strict=True):
        assert torch.equal(level.argmax(dim=2), drawn.flatten(1))


def test_a_scrambled_model_is_evaluated_but_not_drawn():
    model, straight = tiny(decoding="sequential", scrambled_middle=True), tiny(decoding="sequential")
    codes = [torch.arange(4).view(1, 2, 2), torch.arange(16).view(1, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64)]
    with torch.no_grad():
        scrambled, plain = model(codes, torch.tensor([1])), straight(codes, torch.tensor([1]))
    assert torch.equal(scrambled.levels[0], plain.levels[0])  # the top code is drawn before any middle one is read
    assert not torch.allclose(scrambled.levels[2], plain.levels[2])
    with pytest.raises(ValueError, match="can only be evaluated"):
        draw_codes(model, torch.tensor([1]), image_seeds(0, 1), SamplingParams((1.0,) * 3, (1,) * 3, (None,) * 3))


def test_two_dimensional_positions():
    model = tiny(codebook_sizes=(16, 16), position="2d")
    params = SamplingParams((1.0,) * 2, (1,) * 2, (None,) * 2)
    codes = draw_codes(model, torch.tensor([1]), image_seeds(0, 1), params)
    with torch.no_grad():
        logits = model(codes, torch.tensor([1])).levels
    assert torch.equal(logits[0].argmax(dim=2), codes[0].flatten(1))


def test_global_conditioning_with_both_transformers():
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "global_top", refiner=GOLDEN / "global_bottom", dtype="fp32")
    output = pipe([1, 2], output_type="pt", progress=False, seed=5)
    assert [tuple(level.shape) for level in output.codes] == [(2, 4, 4), (2, 8, 8)]
    assert output.images.shape == (2, 3, 64, 64)
    bottom = HQTVAEPipeline.from_pretrained(GOLDEN / "global_bottom", dtype="fp32")
    again = bottom(given_top_codes=output.codes[0], seed=list(output.seeds), output_type="codes", progress=False)
    assert same(output.codes, again.codes)


def test_nan_is_reported_and_not_drawn():
    model = tiny(codebook_sizes=(16, 16))
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    params = SamplingParams((1.0,) * 2, (None,) * 2, (None,) * 2)
    with pytest.raises(ValueError, match="NaN"):
        draw_codes(model, torch.tensor([1]), image_seeds(0, 1), params)


def test_wrong_number_of_levels():
    params = SamplingParams((1.0,), (None,), (None,))
    with pytest.raises(ValueError, match="temperature: expected 3 values, one a level; got 1"):
        draw_codes(tiny(), torch.tensor([1]), image_seeds(0, 1), params)


def test_nothing_is_allocated_for_the_sequence_inside_the_loop(monkeypatch):
    """The caches' memory at the end is the memory they had at the start: written in place, never concatenated."""
    model, made, make = tiny(codebook_sizes=(16, 16)), [], loop.make_step
    monkeypatch.setattr(loop, "make_step", lambda *args: made.append(make(*args)) or made[-1])
    pointers = []
    params = SamplingParams((1.0,) * 2, (None,) * 2, (None,) * 2)

    def on_step():
        pointers.append([cache.keys.data_ptr() for cache in made[-1].caches])

    draw_codes(model, torch.tensor([1]), image_seeds(0, 1), params, on_step=on_step)
    assert len(pointers) == 4
    assert all(step == pointers[0] for step in pointers)
    assert made[-1].caches[0].length == 4


def test_decoding_in_chunks_changes_nothing():
    pipe = golden_pipeline("class_parallel")
    codes = draw("class_parallel", num_images=5)
    whole = decode_codes(pipe.vae, codes, chunk=5)
    torch.testing.assert_close(decode_codes(pipe.vae, codes, chunk=2), whole, rtol=0, atol=1e-5)
    as_bytes = decode_codes(pipe.vae, codes, chunk=2, as_bytes=True)
    assert as_bytes.dtype is torch.uint8
    torch.testing.assert_close(as_bytes.float() / 255, whole.permute(0, 2, 3, 1), rtol=0, atol=0.5 / 255 + 1e-5)
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1


def test_pyramid_layouts_are_inverse():
    local = torch.arange(2 * 9 * 21).view(2, 9, 21)
    maps = to_maps(local, 3, (1, 4, 16))
    assert [tuple(level.shape) for level in maps] == [(2, 3, 3), (2, 6, 6), (2, 12, 12)]
    assert torch.equal(to_local(maps, 3), local)
    assert torch.equal(to_local([level.flatten(1) for level in maps], 3), local)
    assert maps[1][0, :2, :2].flatten().tolist() == [1, 2, 3, 4]  # row by row in the window
    assert maps[2][0, :4, :4].flatten().tolist() == list(range(5, 21))


def test_build_gives_a_usable_model():
    config = dataclasses.replace(golden_pipeline("class_parallel").config)
    checkpoint = build(config)
    assert sum(p.numel() for p in checkpoint.transformer.parameters()) > 0
    assert all(bool(p.isfinite().all()) for p in checkpoint.transformer.parameters())

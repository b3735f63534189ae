"""The released sampling functions' names and results, on stand-ins for the released stage-2 modules."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from conftest import engine, golden_pipeline, golden_values
from released_stand_ins import stand_in
from torch import nn

from hqtvae_fast import compat
from hqtvae_fast.compat import sampling_hqtransformer, sampling_ihqgpt, stage2
from hqtvae_fast.model import HQVAE
from hqtvae_fast.tune.sites import find_sites

GREEDY = {"top_k_top": 1, "top_k_bot": 1, "is_tqdm": False, "use_fp16": False, "max_seq_len": 16}
TWO_LEVELS = ["class_parallel", "class_parallel_iet1", "class_sequential", "class_bidirectional", "uncond_reduce"]


@pytest.mark.parametrize("case", TWO_LEVELS)
def test_two_levels(case):
    golden = golden_values(case)
    top, bottom = sampling_ihqgpt(stand_in(case), 3, int(golden.get("greedy_label", 0)), **GREEDY)
    assert torch.equal(top, golden["greedy_top"])
    assert torch.equal(bottom, golden["greedy_bottom"])


def test_text():
    golden = golden_values("text_parallel")
    top, bottom = sampling_ihqgpt(stand_in("text_parallel"), 1, golden["text"], **GREEDY)
    assert torch.equal(top, golden["greedy_top"])
    assert torch.equal(bottom, golden["greedy_bottom"])
    top, _ = sampling_ihqgpt(stand_in("text_parallel"), 2, golden["text"][:1], **GREEDY)
    assert torch.equal(top, golden["greedy_top"][:1].expand(2, -1))


def test_three_levels():
    golden = golden_values("class_level3")
    options = {"top_k": [1, 1, 1], "top_p": [None] * 3, "is_tqdm": False, "use_fp16": False, "max_seq_len": 16}
    levels = sampling_hqtransformer(stand_in("class_level3"), 3, int(golden["greedy_label"]), **options)
    assert isinstance(levels, list)
    for level, drawn in enumerate(levels):
        assert torch.equal(drawn, golden[f"greedy_{level}"])


def test_our_own_transformer():
    golden, ours = golden_values("class_parallel"), golden_pipeline("class_parallel").transformer
    top, _ = sampling_ihqgpt(ours, 3, int(golden["greedy_label"]), **GREEDY)
    assert torch.equal(top, golden["greedy_top"])
    with pytest.raises(ValueError, match="max_seq_len: expected 16, as the model has; got 64"):
        sampling_ihqgpt(ours, 1, 0, max_seq_len=64)


def test_given_top_code():
    golden, model = golden_values("class_parallel"), stand_in("class_parallel")
    given = golden["greedy_top"][:1]
    top, bottom = sampling_ihqgpt(model, 3, int(golden["greedy_label"]), given_top_code=given, **GREEDY)
    assert torch.equal(top, given.expand(3, -1))
    assert torch.equal(bottom, golden["greedy_bottom"])


def test_manual_seed_holds_at_batch_size_one():
    model = stand_in("class_parallel")
    options = {"is_tqdm": False, "max_seq_len": 16, "softmax_temperature": [0.95, 0.95]}
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(sampling_ihqgpt(model, 1, 2, 40, None, 40, None, **options))
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][1], drawn[2][1])


def test_converted_once_and_again_after_a_change():
    model = stand_in("class_parallel")
    first = compat.convert(model, side=4)
    assert compat.convert(model, side=4) is first
    mean = float(first.norm.weight.mean())  # in fp32 the two share their weights
    with torch.no_grad():
        model.ln_f.weight.mul_(2)
    second = compat.convert(model, side=4)
    assert second is not first
    assert len(stage2._converted[model]) == 1
    assert float(second.norm.weight.mean()) > mean


def test_forgotten_with_the_module():
    gc.collect()
    before = len(stage2._converted)
    model = stand_in("class_parallel")
    compat.convert(model, side=4)
    assert len(stage2._converted) == before + 1
    del model
    gc.collect()
    assert len(stage2._converted) == before


def test_refusals():
    model = stand_in("class_parallel")
    with pytest.raises(ValueError, match="expected a released stage-2 module"):
        sampling_ihqgpt(nn.Linear(2, 2), 1, 0)
    with pytest.raises(ValueError, match="max_seq_len: expected a square number of top positions; got 15"):
        sampling_ihqgpt(model, 1, 0, max_seq_len=15)
    with pytest.raises(ValueError, match="cond: expected a class label from 0 to 9; got 10"):
        sampling_ihqgpt(model, 1, 10, max_seq_len=16)
    with pytest.raises(ValueError, match="cond: expected a class label, got none"):
        sampling_ihqgpt(model, 1, None, max_seq_len=16)


def test_the_executor_draws_and_is_kept_with_the_module(monkeypatch):
    plans = {**stage2.PLANS, "default": engine("captured")}
    monkeypatch.setattr(stage2, "PLANS", plans)
    golden, model = golden_values("class_parallel"), stand_in("class_parallel")
    executors = []
    for _ in range(2):
        top, _ = sampling_ihqgpt(model, 3, int(golden["greedy_label"]), **GREEDY)
        assert torch.equal(top, golden["greedy_top"])
        executors.append(stage2.executor_of(compat.convert(model, side=4, sixteen_bit=False)))
    assert executors[0] is executors[1]
    assert [use.uses for use in executors[0].graphs.report()] == [2]
    with torch.no_grad():
        model.head_top.weight.neg_()
    top, _ = sampling_ihqgpt(model, 3, int(golden["greedy_label"]), **GREEDY)
    assert not torch.equal(top, golden["greedy_top"])
    del executors
    before = len(stage2._executors)
    del model
    gc.collect()
    assert len(stage2._executors) == before - 1


def test_a_model_of_ours_is_left_as_it_was():
    ours = copy.deepcopy(golden_pipeline("class_parallel").transformer)
    ours.prepared = False
    ours.train()
    sampling_ihqgpt(ours, 1, 0, **GREEDY)
    assert ours.training
    assert not ours.prepared


@pytest.mark.parametrize("case", ["class_parallel", "class_level3", "uncond_reduce", "text_parallel"])
def test_a_transformer_alone_is_verified_beside_a_stage_1(case):
    """As on a GPU, of fake tensors."""
    model = compat.convert(stand_in(case), side=4)
    config = stage2.whole_config(model.config)
    assert config.vae.level_sides[0] == 4
    sites = find_sites([model], HQVAE(config.vae).eval(), torch.device("cuda"), (1,))
    assert {"skinny_linear", "sample_logits"} <= {site.op for site in sites}

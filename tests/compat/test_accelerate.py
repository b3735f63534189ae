"""A model whose own calls the engine answers: codes, pixels and logits are the released ones; weights are shared."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from conftest import GOLDEN, golden_values
from released_stand_ins import Whole
from torch import nn

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.compat import accelerate, sampling_hqtransformer, sampling_ihqgpt, stages
from hqtvae_fast.compat.stages import engine_of
from hqtvae_fast.engine import Executor
from hqtvae_fast.released.keys import sources

TWO_LEVELS = ["class_parallel", "class_parallel_iet1", "uncond_reduce", "text_parallel"]
GREEDY = {"top_k_top": 1, "top_k_bot": 1, "is_tqdm": False, "max_seq_len": 16}


@pytest.fixture
def decodes(monkeypatch):
    """How many pictures each decode is of."""
    counts, decode_all = [], Executor.decode_all

    def counted(self, codes, cutter, **options):
        counts.append(cutter.total)
        return decode_all(self, codes, cutter, **options)

    monkeypatch.setattr(Executor, "decode_all", counted)
    return counts


def drawn_greedily(model, case):
    """Code maps as a script arranges them."""
    golden = golden_values(case)
    cond = golden["text"] if case == "text_parallel" else int(golden.get("greedy_label", 0))
    top, bottom = sampling_ihqgpt(model.stage2, len(golden["greedy_top"]), cond, **GREEDY)
    assert torch.equal(top, golden["greedy_top"])
    assert torch.equal(bottom, golden["greedy_bottom"])
    windows = bottom.view(-1, 4, 4, 2, 2).transpose(2, 3)
    return top.view(-1, 4, 4), windows.reshape(-1, 8, 8)


@pytest.mark.parametrize("case", TWO_LEVELS)
def test_a_loop_over_the_rows_is_one_decode(case, decodes):
    model = accelerate(Whole(case), dtype=torch.float32)
    top, bottom = drawn_greedily(model, case)
    pixels = torch.cat([model.stage1.decode_code(top[i : i + 1], bottom[i : i + 1]) for i in range(len(top))])
    shown = (pixels * 0.5 + 0.5).clamp(0, 1)
    golden = golden_values(case)["greedy_pixels"]
    assert torch.allclose(shown[: len(golden)], golden, atol=1e-4)
    assert decodes == [len(top)]
    again = model.stage1.decode_code(top[:2], bottom[:2])  # their memory was given back: decoded again, at once
    assert torch.allclose(again, pixels[:2], atol=1e-5)
    assert not pixels.is_inference()


def test_other_codes_are_decoded_as_they_come(decodes):
    model = accelerate(Whole("class_parallel"), dtype=torch.float32)
    golden = golden_values("class_parallel")
    drawn_greedily(model, "class_parallel")
    codes = golden["codes_top"].view(-1, 4, 4), golden["codes_bottom"].view(-1, 8, 8)
    assert torch.allclose(model.stage1.decode_code(*codes), golden["recon"].clamp(-1, 1), atol=1e-4)
    coarse = model.stage1.decode_code(codes[0], None)
    assert torch.allclose(coarse, golden["recon_top_only"].clamp(-1, 1), atol=1e-4)
    assert decodes == [len(codes[0])] * 2
    assert model.stage1.decode_code(codes[0][:0], codes[1][:0]).shape == (0, 3, 64, 64)  # beyond a last, short batch


def test_one_row_in_the_middle_is_one_picture(decodes):
    model = accelerate(Whole("text_parallel"), dtype=torch.float32)
    top, bottom = drawn_greedily(model, "text_parallel")
    model.stage1.decode_code(top[1:2], bottom[1:2])
    assert decodes == [1]


def test_three_levels():
    golden, model = golden_values("class_level3"), accelerate(Whole("class_level3"), dtype="fp32")
    options = {"top_k": [1, 1, 1], "top_p": [None] * 3, "is_tqdm": False, "max_seq_len": 16}
    levels = sampling_hqtransformer(model.stage2, 3, int(golden["greedy_label"]), **options)
    assert all(torch.equal(level, golden[f"greedy_{index}"]) for index, level in enumerate(levels))
    codes = model.stage1.get_codes(golden["image"])
    assert isinstance(codes, list)
    maps = [level.view(len(golden["image"]), side, side) for level, side in zip(codes, (4, 8, 16), strict=True)]
    assert torch.allclose(model.stage1.decode_code(maps), golden["recon"].clamp(-1, 1), atol=1e-4)
    labels = golden["label"]
    logits = model.stage2([golden[f"in_codes_{index}"].flatten(1) for index in range(3)], labels)
    assert isinstance(logits, list)
    assert all(torch.allclose(level, golden[f"logits_{index}"], atol=1e-4) for index, level in enumerate(logits))


@pytest.mark.parametrize("case", TWO_LEVELS[:3])
def test_encoding_and_logits(case):
    golden, model = golden_values(case), accelerate(Whole(case), dtype="fp32")
    top, bottom = model.stage1.get_codes(golden["image"])
    assert torch.equal(top, golden["codes_top"].flatten())  # as the released quantizer returns them
    assert torch.equal(bottom, golden["codes_bottom"].flatten())
    codes, softs = model.stage1.get_soft_codes(golden["image"], temp=1.0)
    assert torch.equal(codes[0], top)
    assert torch.allclose(softs[1], golden["soft_bottom"].reshape(softs[1].shape), atol=1e-4)
    given = [golden["in_codes_0"].flatten(1), golden["in_codes_1"].flatten(1)]
    logits = model.stage2(given, golden.get("label"))
    assert isinstance(logits, tuple)
    assert torch.allclose(logits[0], golden["logits_0"], atol=1e-4)
    assert torch.allclose(logits[1], golden["logits_1"], atol=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_changed_weights_are_noticed(dtype):
    model = accelerate(Whole("class_parallel"), dtype=dtype)
    images = golden_values("class_parallel")["image"]

    def look():
        top, _ = sampling_ihqgpt(model.stage2, 2, 1, **GREEDY)
        codes = [level.view(len(images), side, side) for level, side in zip(first, (4, 8), strict=True)]
        return top, model.stage1.decode_code(*codes)

    first = model.stage1.get_codes(images)
    top, pixels = look()
    pipe = engine_of(model.stage1).pipeline
    with torch.no_grad():
        model.stage1.post_quant_conv_b.weight.mul_(0.5)
        model.stage2.head_top.weight.neg_()
        model.stage2.blocks[0].attn.query.weight.mul_(2)
    other_top, other_pixels = look()
    assert engine_of(model.stage1).pipeline is pipe  # in place
    assert not torch.equal(top, other_top)
    assert not torch.allclose(pixels, other_pixels, atol=1e-3)
    fresh = Whole("class_parallel")
    fresh.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    fresh_top, _ = sampling_ihqgpt(accelerate(fresh, dtype=dtype).stage2, 2, 1, **GREEDY)
    assert torch.equal(fresh_top, other_top)
    model.stage2.head_top.weight = nn.Parameter(-model.stage2.head_top.weight.detach())  # another tensor
    model.stage2.requires_grad_(False)
    look()
    assert engine_of(model.stage1).pipeline is not pipe


def test_in_training_and_for_gradients_it_runs_as_it_is():
    model = accelerate(Whole("class_parallel"))
    codes = torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.int64)
    model.train()
    assert model.stage1.decode_code(*codes) == "as it is"
    model.eval().stage1.requires_grad_(True)
    assert model.stage1.decode_code(*codes) == "as it is"
    with torch.no_grad():
        assert model.stage1.decode_code(*codes).shape == (1, 3, 64, 64)


def held():
    """Bytes of all tensors' memory that Python knows of."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_memory_is_the_pipelines(dtype):
    before = held()
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype=dtype)
    pipe(class_labels=1, num_images=2, progress=False)
    own = held() - before
    del pipe
    before = held()
    model = accelerate(Whole("class_parallel"), dtype=dtype)
    sampling_ihqgpt(model.stage2, 2, 1, **GREEDY)
    assert held() - before <= 1.1 * own
    del model
    assert held() - before < 0.01 * own  # and it is forgotten with the model


def test_names_are_looked_up_once_a_stage(monkeypatch):
    """Not for each of its weights, of which S has 475: six seconds of looking up."""
    asked = []
    monkeypatch.setattr(stages, "sources", lambda *given: asked.append(given) or sources(*given))
    drawn_greedily(accelerate(Whole("class_parallel"), dtype=torch.float32), "class_parallel")
    assert len(asked) <= 4


def test_stages_alone_and_others():
    whole = Whole("class_parallel")
    golden = golden_values("class_parallel")
    stage1 = accelerate(whole.stage1, dtype="fp32")
    assert torch.equal(stage1.get_codes(golden["image"])[0], golden["codes_top"].flatten())
    stage2 = accelerate(whole.stage2)
    assert accelerate(stage2) is stage2
    top, _ = sampling_ihqgpt(stage2, 3, int(golden["greedy_label"]), use_fp16=False, **GREEDY)
    assert torch.equal(top, golden["greedy_top"])
    with pytest.raises(ValueError, match="expected a released stage-2 module"):
        accelerate(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="max_seq_len: expected 16, as the model has; got 64"):
        sampling_ihqgpt(accelerate(Whole("class_parallel")).stage2, 1, 0, max_seq_len=64)


def test_a_copy_has_weights_of_its_own():
    model = accelerate(Whole("class_parallel"), dtype="fp32")
    drawn_greedily(model, "class_parallel")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.stage2.head_top.weight.neg_()
    top, _ = sampling_ihqgpt(other.stage2, 3, int(golden_values("class_parallel")["greedy_label"]), **GREEDY)
    assert not torch.equal(top, golden_values("class_parallel")["greedy_top"])
    drawn_greedily(model, "class_parallel")

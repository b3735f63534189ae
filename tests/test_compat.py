"""The released sampling functions' names and results, on stand-ins for the released stage-2 modules.

A stand-in has a golden checkpoint's parameters under the released names, and the attributes that the released classes
set from their arguments.
"""

from __future__ import annotations

import gc
import re

import pytest
import torch
import yaml
from conftest import GOLDEN, golden_pipeline, golden_values
from torch import nn

from hqtvae_fast import compat
from hqtvae_fast.compat import sampling_hqtransformer, sampling_ihqgpt


class Node(nn.Module):
    """A module tree made of dotted names; knows an embedding's sizes and a ModuleList's length from its parameters."""

    num_embeddings = property(lambda self: self.weight.shape[0])
    embedding_dim = property(lambda self: self.weight.shape[1])

    def __len__(self):
        return len(self._modules)

    def __iter__(self):
        return iter(self._modules.values())

    def __getitem__(self, index):
        return self._modules[str(index)]


def grow(state, prefix):
    root = Node()
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        node, names = root, key.removeprefix(prefix).split(".")
        for name in names[:-1]:
            if name not in node._modules:
                node.add_module(name, Node())
            node = node._modules[name]
        node.register_parameter(names[-1], nn.Parameter(value.clone()))
    return root


def stand_in(case):
    state = torch.load(GOLDEN / case / "ckpt" / "last.ckpt", weights_only=True)["state_dict"]
    stage2 = yaml.safe_load((GOLDEN / case / "config.yaml").read_text())["stage2"]
    hparams, model = stage2["hparams"], grow(state, "stage2.")
    model.use_cls_cond, model.use_txt_cond = stage2["use_cls_cond"], stage2["use_txt_cond"]
    model.idx_pred = hparams["ctx_len_txt"] if model.use_txt_cond else 0
    model.position_embedding = hparams["position_embedding"]
    model.use_random_order = False
    model.spatial_embedding = re.sub(r"\d", "", hparams["embedding_type"])
    if model.spatial_embedding == "transformer" and "emb_blocks" not in model._modules:
        model.add_module("emb_blocks", Node())
    for blocks, settings in ((model.blocks, hparams), (model.depths, stage2["hparams_dec"])):
        for block in blocks._modules.values():
            block.attn.n_heads = settings["n_heads"]
            block.mlp.add_module("1", Node())
            block.mlp[1].use_approx = settings["gelu_use_approx"]
    if stage2["type"] == "multilevel-hq":
        model.code_level, model.decoding_type = 3, stage2["decoding_type"]
    else:
        model.ratio_bot2top = stage2["ratio_bot2top"]
        kind = stage2["type"].partition("/")[2] or "top2bot"
        model.model_type = kind.rstrip("0123456789") if kind != "top2bot" else kind
    return model


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
    assert len(compat._converted[model]) == 1
    assert float(second.norm.weight.mean()) > mean


def test_forgotten_with_the_module():
    gc.collect()
    before = len(compat._converted)
    model = stand_in("class_parallel")
    compat.convert(model, side=4)
    assert len(compat._converted) == before + 1
    del model
    gc.collect()
    assert len(compat._converted) == before


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

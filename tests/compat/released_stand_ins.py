"""Stand-ins for the released modules: a golden checkpoint's parameters under the released names, and the attributes
that the released classes set from their arguments."""

from __future__ import annotations

import re
from typing import Any

import torch
import yaml
from conftest import GOLDEN
from torch import nn


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


class Stage1(Node):
    """Says that it runs as it is, where the engine does not answer."""

    def decode_code(self, *codes):
        return "as it is"

    get_codes = get_soft_codes = decode_code


def stand_in_stage1(case):
    file = GOLDEN / case / "ckpt" / "last.ckpt"
    state = torch.load(file, weights_only=True)["state_dict"]
    settings = yaml.safe_load((GOLDEN / case / "config.yaml").read_text())["stage1"]
    model = grow({key.replace("stage1.generator.", "stage1."): value for key, value in state.items()}, "stage1.")
    model.__class__ = Stage1
    model.encoder.resolution = settings["hparams"]["resolution"]
    if settings["type"] == "simrqgan2":
        model.down_t = nn.PixelUnshuffle(2)
    else:
        model.downsamples = nn.ModuleList([nn.PixelUnshuffle(2), nn.PixelUnshuffle(2)])
    return model.requires_grad_(False)


class Whole(nn.Module):
    """Both stages of a golden checkpoint, as ``ImageGPT2`` holds them."""

    stage1: Any
    stage2: Any

    def __init__(self, case: str) -> None:
        super().__init__()
        self.stage1, self.stage2 = stand_in_stage1(case), stand_in(case).requires_grad_(False)
        self.eval()

"""Encoding over a static buffer gives the model's codes, whatever came before."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import engine, golden_pipeline, golden_values

from hqtvae_fast.engine.coding import EncodeReplay, make_encoder
from hqtvae_fast.engine.graph import CaptureError

CASES = ("class_parallel", "class_level3", "stage1_avgpool", "stage1_conv2")


def pictures(vae, count, seed):
    R = vae.config.resolution
    return torch.rand(count, 3, R, R, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_replay_gives_the_models_codes(case):
    """Fewer pictures than the buffer holds come after more of others."""
    vae = golden_pipeline(case).vae
    replay = EncodeReplay(vae, 3)
    for seed, count in ((0, 3), (1, 1), (2, 2)):
        images = pictures(vae, count, seed)
        assert same(replay(images), vae.encode(images))


def test_codes_are_the_callers_own():
    vae = golden_pipeline("class_parallel").vae
    replay = EncodeReplay(vae, 2)
    first = replay(pictures(vae, 2, 0))
    kept = [level.clone() for level in first]
    replay(pictures(vae, 2, 1))
    assert same(first, kept)


def test_golden_codes_come_out_of_a_replay():
    golden = golden_values("class_parallel")
    codes = EncodeReplay(golden_pipeline("class_parallel").vae, 4)(golden["image"])
    assert same(codes, (golden["codes_top"], golden["codes_bottom"]))


@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (0, 3, 64, 64), (1, 3, 32, 64), (3, 64, 64)])
def test_other_shapes_are_refused(shape):
    replay = EncodeReplay(golden_pipeline("class_parallel").vae, 2)
    with pytest.raises(ValueError, match=r"images: this capture is for \[1..2, 3, 64, 64\]; got"):
        replay(torch.zeros(shape))


def test_an_encoder_is_a_capture_where_that_is_asked_for():
    vae = golden_pipeline("class_parallel").vae
    assert isinstance(make_encoder(vae, 2, engine("captured")), EncodeReplay)
    plain = make_encoder(vae, 2)
    assert not isinstance(plain, EncodeReplay)  # on a CPU
    images = pictures(vae, 2, 0)
    assert same(plain(images), vae.encode(images))


def test_what_cannot_be_captured_is_run_as_it_is_and_says_so(monkeypatch):
    def fail(self, *_):
        raise CaptureError("cannot be captured in a CUDA graph: aten::nonzero")

    vae = golden_pipeline("class_parallel").vae
    monkeypatch.setattr(EncodeReplay, "__init__", fail)
    with pytest.warns(UserWarning, match="aten::nonzero: encoding step by step, which is slower"):
        encode = make_encoder(vae, 2, engine("captured"))
    images = pictures(vae, 2, 0)
    assert same(encode(images), vae.encode(images))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_a_graph_gives_the_models_codes_bit_for_bit(case):
    vae = copy.deepcopy(golden_pipeline(case).vae).cuda()
    replay = make_encoder(vae, 3)
    assert isinstance(replay, EncodeReplay)
    assert replay.bytes > 0
    for seed, count in ((0, 3), (1, 2), (2, 3)):
        images = pictures(vae, count, seed)
        full = torch.cat([images, images[:1].expand(3 - count, -1, -1, -1)]).cuda()  # products of the same shape
        assert same(replay(images), [level[:count] for level in vae.encode(full)])

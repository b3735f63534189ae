"""What comes back: sheets, pictures in a notebook, short words for print, and steps as they are done."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from conftest import GOLDEN, engine, golden_pipeline
from PIL import Image

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine.executor import Executor

DRAW = {"class_labels": [1, 2], "num_images": 2, "progress": False}


@pytest.fixture
def pipe():
    return golden_pipeline("class_parallel")


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_T13_a_sheet_of_any_output(pipe, output_type):
    output = pipe(**DRAW, output_type=output_type)
    assert output.grid().size == (2 * 66 - 2, 2 * 66 - 2)
    assert output.grid(columns=4, gap=0).size == (4 * 64, 64)
    shown = Image.open(io.BytesIO(output._repr_png_()))
    assert np.array_equal(np.asarray(shown), np.asarray(pipe(**DRAW).grid()))


def test_T13_codes_alone_have_no_sheet(pipe):
    output = pipe(**DRAW, output_type="codes")
    assert output._repr_png_() is None
    with pytest.raises(ValueError, match=r"^grid: expected pictures; got codes alone"):
        output.grid()


@pytest.mark.parametrize(
    "output_type, kind",
    [
        ("pil", "PIL 64x64"),
        ("np", r"float32 [4, 64, 64, 3]"),
        ("pt", r"float32 [4, 3, 64, 64]"),
        ("codes", "codes alone"),
    ],
)
def test_T13_print_shows_no_tensors(pipe, output_type, kind):
    output = pipe(**DRAW, output_type=output_type, seed=[1, 2, 3, 4])
    assert repr(output) == f"HQTVAEOutput(4 pictures: {kind}; codes 4x4 + 8x8; seeds 1, 2, 3, 4)"


def test_T13_a_picture_of_a_stream_shows_itself(pipe):
    for output_type in ("pil", "np", "pt"):
        first = next(pipe.stream(1, output_type=output_type, seed=7))
        assert Image.open(io.BytesIO(first._repr_png_())).size == (64, 64)
        assert repr(first).startswith("HQTVAEImage(0: ")
        assert repr(first).endswith("codes 4x4 + 8x8; seed 7)")
    assert next(pipe.stream(1, output_type="codes"))._repr_png_() is None


def test_F21_no_codes_give_no_pictures(pipe):
    nothing = [np.zeros((0, 4, 4), np.uint16), torch.zeros(0, 8, 8, dtype=torch.int64)]
    assert pipe.decode(nothing) == []
    assert pipe.decode(nothing, "np").shape == (0, 64, 64, 3)
    assert pipe.decode(nothing, "pt").shape == (0, 3, 64, 64)


# -------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("text", ["uncaptured", "captured"])
def test_T13_every_step_is_told(text):
    plan = engine(text)
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32", plan=plan)
    seen = []
    drawn = pipe(**DRAW, batch_size=2, on_step=lambda step, total: seen.append((step, total))).codes
    steps = 2 * 16  # two batches of 4x4 top positions
    assert seen == [(step, steps) for step in range(1, steps + 1)]
    plain = pipe(**DRAW, batch_size=2).codes
    assert all(torch.equal(one, other) for one, other in zip(drawn, plain, strict=True))


@pytest.mark.parametrize("error", [ValueError, RuntimeError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("text", ["uncaptured", "captured"])
def test_T13_an_error_in_a_step_ends_the_drawing_and_comes_out(pipe, monkeypatch, error, text):
    plan, one = engine(text), {"class_labels": 1, "output_type": "codes", "progress": False}
    expected = pipe(**one)
    monkeypatch.setattr(pipe, "_executor", Executor([pipe.transformer], pipe.vae, pipe.device, plan))
    seen = []

    def stop(step, total):
        seen.append(step)
        if step == 3:
            raise error("enough")

    with pytest.raises(error, match="enough"):
        pipe(**one, on_step=stop)
    assert seen == [1, 2, 3]
    stream = pipe.stream(**one, on_step=stop)
    with pytest.raises(error, match="enough"):
        next(stream)
    assert all(map(torch.equal, pipe(**one).codes, expected.codes))


def test_T13_a_step_needs_a_function(pipe):
    with pytest.raises(ValueError, match=r"^on_step: expected a function of two numbers; got 5"):
        pipe(**DRAW, on_step=5)

"""``hqtvae convert`` and ``hqtvae info``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file

from hqtvae_fast.cli import model_facts
from hqtvae_fast.hardware import published

from .conftest import Run, assert_one_line_error, pixels

CLASSES = GOLDEN / "class_parallel"
LARGER, OTHERS = (("M", "870.7"), ("L", "1,437.4")), ("global_top", "text_parallel", "class_level3")

# ------------------------------------------------------------------------------------------------------------ convert


def test_converted_checkpoint_draws_the_same(run: Run, tmp_path: Path) -> None:
    result = run("convert", CLASSES, tmp_path / "converted")
    assert result.code == 0
    assert "wrote" in result.out
    assert "model.safetensors" in result.out
    assert json.loads((tmp_path / "converted/config.json").read_text())["format"] == "hqtvae_fast"
    for checkpoint, name in ((CLASSES, "a.png"), (tmp_path / "converted", "b.png")):
        assert run("sample", checkpoint, "--classes", "1", "--out", name, "--dtype", "fp32").code == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_prior_and_refiner_become_one(run: Run) -> None:
    assert run("convert", GOLDEN / "global_top", "pair", "--refiner", GOLDEN / "global_bottom").code == 0
    assert run("sample", "pair", "--classes", "1", "--save-codes", "codes.safetensors").code == 0
    assert len(load_file("codes.safetensors")) == 2


def test_tokenizer_comes_along(run: Run, text_checkpoint: Path) -> None:
    assert "tokenizer.json" in run("convert", text_checkpoint, "converted").out
    assert run("sample", "converted", "--prompt", "a red cube").code == 0


@pytest.mark.parametrize("name, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_convert_to_a_dtype(run: Run, name: str, dtype: torch.dtype) -> None:
    assert run("convert", CLASSES, "converted", "--dtype", name).code == 0
    state = load_file("converted/model.safetensors")
    for key, value in state.items():
        casts = not key.startswith("vae.") or key.startswith(("vae.decoder.", "vae.post_quant_conv."))
        assert value.dtype == (dtype if casts else torch.float32), key
    assert run("sample", "converted", "--classes", "1").code == 0


def test_convert_to_one_byte_a_value(run: Run) -> None:
    assert run("convert", CLASSES, "plain", "--dtype", "bf16").code == 0
    for kind, dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
        result = run("convert", CLASSES, kind, "--quantize", kind, "--dtype", "bf16")
        assert result.code == 0
        assert f"bfloat16, float32, {str(dtype).removeprefix('torch.')}" in result.out
        state = load_file(f"{kind}/model.safetensors")
        assert state["transformer.head.logits.0.weight"].dtype == dtype
        assert any(key.endswith(".input_span") for key in state)  # the decoder is calibrated too
        assert run("sample", kind, "--classes", "1").code == 0
        sizes = [Path(name, "model.safetensors").stat().st_size for name in ("plain", kind)]
        assert sizes[1] < sizes[0]
    assert_one_line_error(run("convert", "int8", "other", "--quantize", "fp8"), "--quantize: expected int8")
    stage1 = run("convert", GOLDEN / "stage1_conv2", "other", "--quantize", "int8")
    assert_one_line_error(stage1, "--quantize: expected a checkpoint with a transformer")


def test_weights_too_large_for_fp16(run: Run, tmp_path: Path) -> None:
    assert run("convert", CLASSES, "large").code == 0
    state = load_file("large/model.safetensors")
    state["transformer.norm.weight"].fill_(1e6)
    save_file(state, "large/model.safetensors")
    result = run("convert", "large", "converted", "--dtype", "fp16")
    assert_one_line_error(result, "--dtype", "transformer.norm.weight", "float16")
    assert not (tmp_path / "converted").exists()


def test_convert_keeps_what_is_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    assert_one_line_error(run("convert", CLASSES, "taken"), "taken", "--force")
    assert [file.name for file in (tmp_path / "taken").iterdir()] == ["notes.txt"]
    assert run("convert", CLASSES, "taken", "--force").code == 0
    assert (tmp_path / "taken/notes.txt").read_text() == "mine"
    assert_one_line_error(run("convert", CLASSES, "taken/notes.txt"), "notes.txt", "is a file")
    assert_one_line_error(run("convert", CLASSES, "taken/notes.txt/deeper"), "notes.txt", "is a file")


def test_convert_with_a_full_disk(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert_one_line_error(run("convert", CLASSES, "converted"), "converted", "No space left on device")
    assert not (tmp_path / "converted").exists()


def test_convert_of_bad_weights(run: Run, nan_checkpoint: Path, tmp_path: Path) -> None:
    assert_one_line_error(run("convert", nan_checkpoint, "converted"), "NaN")
    assert_one_line_error(run("convert", tmp_path / "missing", "converted"), "no such directory")
    assert not (tmp_path / "converted").exists()


# --------------------------------------------------------------------------------------------------------------- info


@pytest.mark.parametrize(
    "preset, millions", [("S", "530.8"), *(pytest.param(*model, marks=pytest.mark.slow) for model in LARGER)]
)
def test_info_on_the_papers_models(run: Run, preset: str, millions: str) -> None:
    result = run("info", "--preset", preset, "--no-measure", "--batch", "3")
    assert result.code == 0
    assert re.search(rf"transformer, together\s+{millions} M", result.out)
    assert re.search(r"decode\s+177\.5 GFLOP", result.out)
    for word in ("transformer.body.num_layers", "weights read in a step", "A100", "H100", "torch"):
        assert word in result.out


def test_info_measures_this_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_facts, "measure_this_machine", lambda: published("L40S"))
    assert "L40S" in run("info", "--preset", "S").out


@pytest.mark.parametrize(
    "case", ["class_parallel", "stage1_conv2", *(pytest.param(case, marks=pytest.mark.slow) for case in OTHERS)]
)
def test_info_on_a_checkpoint(run: Run, case: str) -> None:
    result = run("info", GOLDEN / case, "--no-measure", "--dtype", "fp32")
    assert result.code == 0
    assert "Weights are stored in" in result.out
    assert ("draw all codes" in result.out) == (not case.startswith("stage1"))


def test_info_on_the_machine_alone(run: Run) -> None:
    result = run("info")
    assert result.code == 0
    assert torch.__version__ in result.out
    assert "S-3level" in result.out


def test_info_bad_input(run: Run, tmp_path: Path) -> None:
    assert_one_line_error(run("info", "--preset", "XXL"), "preset", "S, M, L", "'XXL'")
    assert_one_line_error(run("info", "--preset", "S", CLASSES), "CHECKPOINT and --preset")
    assert_one_line_error(run("info", tmp_path / "missing"), "no such directory")
    assert_one_line_error(run("info", "--preset", "S", "--batch", "0"), "--batch")

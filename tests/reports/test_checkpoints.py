"""Checkpoint files as others write and damage them."""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import re
import shutil
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_pipeline

from hqtvae_fast import HQTVAEPipeline, checkpoint
from hqtvae_fast.checkpoint import CheckpointError
from hqtvae_fast.cli import main
from hqtvae_fast.files.tensors import read_state
from hqtvae_fast.released.state import plain_keys
from hqtvae_fast.released.tokenizer import MERGES, VOCABULARY
from hqtvae_fast.text import PromptTokenizer

CASE = "class_parallel"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 123456789\n"
HTML = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


@pytest.fixture
def released(tmp_path):
    """A copy of a released directory, and its checkpoint's file."""
    shutil.copytree(GOLDEN / CASE, tmp_path / "released")
    return tmp_path / "released", tmp_path / "released" / "ckpt" / "last.ckpt"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return checkpoint.save(checkpoint.load(GOLDEN / "stage1_conv2"), tmp_path_factory.mktemp("saved") / "ours")


@pytest.fixture
def native(saved, tmp_path):
    """A directory of our format."""
    return shutil.copytree(saved, tmp_path / "ours")


@functools.cache
def golden() -> dict[str, torch.Tensor]:
    return torch.load(GOLDEN / CASE / "ckpt" / "last.ckpt", weights_only=True)["state_dict"]


def state() -> dict[str, torch.Tensor]:
    return dict(golden())


def archive(kind: str) -> bytes:
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as file:
            file.writestr("last.ckpt", b"x" * 100)
    else:
        with tarfile.open(fileobj=data, mode="w") as file:
            file.addfile(tarfile.TarInfo("last.ckpt"))
    return data.getvalue()


NONE_OF_THEM = {
    "pointer": (POINTER, "a Git LFS pointer (the file itself has 123,456,789 bytes): get it with 'git lfs pull'"),
    "page": (HTML, "a web page"),
    "empty": (b"", "an empty file"),
    "gzip": (gzip.compress(b"x" * 100), "a gzip archive: unpack it"),
    "tar": (archive("tar"), "a tar archive: unpack it"),
    "xz": (b"\xfd7zXZ\x00" + b"x" * 50, "an xz archive: unpack it"),
}
FILES = ["ckpt/last.ckpt", "config.yaml", "model.safetensors", "config.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", NONE_OF_THEM)
def test_F12_a_file_that_is_none_is_named_as_what_it_is(saved, tmp_path, kind, name):
    source = saved if (saved / name).exists() else GOLDEN / "stage1_conv2"
    folder = shutil.copytree(source, tmp_path / "model")
    data, message = NONE_OF_THEM[kind]
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(folder)
    assert str(error.value).startswith(f"{folder / name}: expected ")
    assert message in str(error.value)


def test_F12_a_tokenizer_that_is_none_is_named_as_what_it_is(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*a Git LFS pointer"):
        PromptTokenizer(tmp_path / "tokenizer.json", 8, 100)


def test_F12_a_zip_archive_and_other_tensors_files(released):
    directory, file = released
    file.write_bytes(archive("zip"))
    with pytest.raises(CheckpointError, match=r"last\.ckpt: .*a zip archive: unpack it"):
        checkpoint.load(directory)
    file.write_bytes(b"\x89HDF\r\n\x1a\n" + b"x" * 50)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: .*an HDF5 file"):
        checkpoint.load(directory)
    file.write_text("import torch\n")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: truncated at 13 bytes, or not a torch file"):
        checkpoint.load(directory)


@pytest.mark.parametrize("legacy", [False, True])
def test_F12_a_download_cut_at_any_length_is_a_checkpoint_error(released, legacy):
    directory, file = released
    torch.save({"state_dict": state()}, file, _use_new_zipfile_serialization=not legacy)
    whole = file.read_bytes()
    lengths = {1, 2, 3, 10, 63, 64, 200, 511, 1000, 4096, len(whole) // 2, len(whole) - 100, len(whole) - 1}
    for length in sorted(lengths):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"last\.ckpt: .*{length:,} bytes"):
            checkpoint.load(directory)


def test_F12_safetensors_cut_at_any_length_is_a_checkpoint_error(native):
    file = native / "model.safetensors"
    whole = file.read_bytes()
    for length in (1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: truncated at {length:,} bytes"):
            checkpoint.load(native)


def test_F12_half_a_directory_says_what_is_missing(released):
    directory, file = released
    (directory / "config.yaml").rename(directory / "kept")
    with pytest.raises(CheckpointError, match=r"released: expected config\.json or config\.yaml, found neither"):
        checkpoint.load(directory)
    (directory / "kept").rename(directory / "config.yaml")
    with pytest.raises(CheckpointError, match=rf"ckpt: expected config\.json .*: give {directory}$"):
        checkpoint.load(file.parent)
    with pytest.raises(CheckpointError, match=rf"expected a checkpoint directory; got a file: give {directory}$"):
        checkpoint.load(file)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"expected ckpt/last\.ckpt or ckpt/state_dict\.ckpt, found neither"):
        checkpoint.load(directory)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state().items()}


def zeros() -> dict[str, torch.Tensor]:
    return {key: torch.zeros_like(value) for key, value in state().items()}


SAVED = {
    "plain": state,
    "ordered": lambda: OrderedDict(state()),
    "nested": lambda: {"state_dict": state(), "epoch": 3},
    "model": lambda: {"model": state(), "epoch": 3},
    "model_state_dict": lambda: {"model_state_dict": state(), "optimizer_state_dict": {"state": {}}, "loss": 0.5},
    "nested twice": lambda: {"model": {"state_dict": state()}},
    "module.": lambda: {"state_dict": prefixed("module.")},
    "_orig_mod.": lambda: {"state_dict": prefixed("_orig_mod.")},
    "model.": lambda: {"state_dict": prefixed("model.")},
    "module._orig_mod.": lambda: prefixed("module._orig_mod."),
    "inner _orig_mod.": lambda: {re.sub(r"^(stage\d)\.", r"\1._orig_mod.", key): v for key, v in state().items()},
    "counter": lambda: {**state(), "stage2.step": torch.tensor(3)},
    "parameters": lambda: {key: torch.nn.Parameter(value, requires_grad=False) for key, value in state().items()},
    "float64": lambda: {key: value.double() for key, value in state().items()},
    "views": lambda: {key: value.t().contiguous().t() if value.ndim == 2 else value for key, value in state().items()},
}
CHOICE = {
    "model and ema": (lambda: {"model": state(), "ema": zeros()}, "the weights under 'model'"),
    "ema alone": (lambda: {"ema": state(), "step": 1}, "the EMA copy under 'ema'"),
    "ema. beside": (
        lambda: {"state_dict": {**{f"ema.{k}": v for k, v in zeros().items()}, **state()}},
        "the weights without 'ema.'",
    ),
    "ema. alone": (lambda: {"state_dict": prefixed("model_ema.")}, "the EMA copy under 'model_ema.'"),
}


def is_golden(file: Path) -> bool:
    """Whether a file's weights are the golden model's, under its keys, in any precision."""
    found, expected = plain_keys(read_state(file), file), state()
    return found.keys() == expected.keys() and all(
        torch.equal(value.float(), expected[key]) for key, value in found.items()
    )


@pytest.mark.parametrize("name", SAVED)
def test_F12_a_state_dict_is_found_as_people_save_it(released, name):
    _, file = released
    torch.save(SAVED[name](), file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_golden(file)


@pytest.mark.parametrize("name", CHOICE)
def test_F12_plain_weights_are_preferred_to_an_ema_copy_and_one_warning_says_so(released, name):
    _, file = released
    make, message = CHOICE[name]
    torch.save(make(), file)
    with pytest.warns(UserWarning, match=" taken") as said:
        assert is_golden(file)
    assert len(said) == 1
    assert str(said[0].message).startswith(f"{file}: {message}")


def test_F12_safetensors_under_a_pickle_s_name_is_read(released):
    from safetensors.torch import save_file

    _, file = released
    save_file({key: value.contiguous() for key, value in state().items()}, file)
    assert is_golden(file)


def test_F12_a_model_saved_another_way_is_the_same_model(released):
    directory, file = released
    torch.save({"model": prefixed("module."), "optimizer": {"state": {}}}, file)
    opened, expected = checkpoint.load(directory), golden_pipeline(CASE)
    for name in ("vae", "transformer"):
        own, wanted = (getattr(model, name).state_dict() for model in (opened, expected))
        assert all(torch.equal(value, wanted[key]) for key, value in own.items())


def test_F12_keys_that_do_not_fit_are_shown_beside_those_expected(released):
    directory, file = released
    torch.save({"state_dict": prefixed("backbone.")}, file)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(directory)
    assert re.search(r"last\.ckpt: its \d+ keys are such as backbone\.stage1\.\S+, backbone\.", str(error.value))
    assert "found no such key" in str(error.value)


@pytest.mark.parametrize(
    "extra, name", [(np.float64(0.1), "state_dict"), (argparse.Namespace(lr=1), "model"), (Path("x"), "state_dict")]
)
def test_F12_a_refused_pickle_says_how_to_take_the_tensors_out(released, extra, name):
    directory, file = released
    torch.save({name: state(), "extra": extra}, file)
    with pytest.raises(
        CheckpointError, match="refused, a checkpoint may hold tensors only; this one asks to run"
    ) as error:
        checkpoint.load(directory)
    exec(str(error.value).partition("in its place: ")[2], {})  # as it is shown to be run, by who trusts the file
    taken = file.with_name("last.tensors.ckpt")
    assert read_state(taken).keys() == state().keys()
    taken.replace(file)
    assert checkpoint.load(directory).transformer is not None
    assert is_golden(file)


def test_T9_a_text_model_without_a_tokenizer_says_what_is_needed():
    wanted = r"prompt: expected a tokenizer\.json beside .* of at most 50 tokens\. Of a released"
    with pytest.raises(ValueError, match=wanted):
        golden_pipeline("text_parallel")(prompt="a cat", progress=False)


def test_T9_convert_makes_the_tokenizer_of_the_released_files(tmp_path):
    words = ["[PAD]", "[UNK]", "c", "a", "t", "t</w>", "ca", "cat</w>"]
    (tmp_path / VOCABULARY).write_text(json.dumps({word: index for index, word in enumerate(words)}))
    out, given = tmp_path / "out", [str(GOLDEN / "text_parallel"), str(tmp_path / "out"), "--tokenizer", str(tmp_path)]
    assert main(["convert", *given]) == 2  # no merges beside the vocabulary
    assert not out.exists()
    (tmp_path / MERGES).write_text("#version: 0.2\nc a\nca t</w>\n")
    assert main(["convert", *given]) == 0
    pipe = HQTVAEPipeline.from_pretrained(out, device="cpu", dtype="fp32")
    assert pipe.tokenizer(["Cat"])[0].tolist() == [7, *[0] * (pipe.transformer.config.prefix_length - 1)]
    assert main(["convert", str(GOLDEN / "class_parallel"), str(tmp_path / "other"), "--tokenizer", str(tmp_path)]) == 2

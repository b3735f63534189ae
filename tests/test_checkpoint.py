"""Checkpoint directories: both formats, round trips, and what is said of broken ones."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml
from conftest import CASES, GOLDEN, golden_pipeline, golden_values

from hqtvae_fast import HQTVAEPipeline, checkpoint
from hqtvae_fast.checkpoint import CheckpointError
from hqtvae_fast.config import PRESETS, from_dict, to_dict
from hqtvae_fast.files.tensors import is_finite
from hqtvae_fast.model.linear import QuantizedWeight, quantized_linears
from hqtvae_fast.ops.kernels.skinny_linear.reference import QUANTIZED


@pytest.fixture
def released(tmp_path):
    """A copy of a released directory to break, with its state."""
    target = tmp_path / "released"
    shutil.copytree(GOLDEN / "class_parallel", target)
    return target, target / "ckpt" / "last.ckpt"


def rewrite(file: Path, change) -> None:
    data = torch.load(file, weights_only=True)
    change(data["state_dict"])
    torch.save(data, file)


def test_configurations_survive_json():
    for config in PRESETS.values():
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("case", CASES)
def test_native_round_trip(case, tmp_path):
    original = checkpoint.load(GOLDEN / case)
    checkpoint.save(original, tmp_path / "ours")
    assert sorted(os.listdir(tmp_path / "ours")) == ["config.json", "model.safetensors"]
    modes = {(tmp_path / "ours" / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1, "both are readable by whom the umask lets in"
    again = checkpoint.load(tmp_path / "ours")
    assert again.config == original.config
    for name, module in original.modules().items():
        state = again.modules()[name].state_dict()
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantized_weights_are_stored_as_they_are(kind, tmp_path):
    rounded = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32", quantization=kind)
    rounded.save_pretrained(tmp_path / "ours")
    state = safetensors.torch.load_file(tmp_path / "ours" / "model.safetensors")
    scales = [key for key in state if key.endswith(".weight_scale")]
    assert len(scales) == len(quantized_linears(rounded.transformer)) > 10
    assert {state[key.removesuffix("_scale")].dtype for key in scales} == {QUANTIZED[kind]}
    for given in (None, kind):
        again = HQTVAEPipeline.from_pretrained(tmp_path / "ours", device="cpu", dtype="fp32", quantization=given)
        wanted, got = quantized_linears(rounded.transformer), quantized_linears(again.transformer)
        assert wanted.keys() == got.keys()
        for name, weight in wanted.items():
            assert torch.equal(weight.stored.float(), got[name].stored.float()), name
            assert torch.equal(weight.scale, got[name].scale), name
        drawn = [pipe(class_labels=[1, 2], output_type="codes", seed=3).codes for pipe in (rounded, again)]
        assert all(torch.equal(*levels) for levels in zip(*drawn, strict=True))
    other = "fp8" if kind == "int8" else "int8"
    with pytest.raises(ValueError, match=f"quantization: expected '{kind}', to which .* or None; got '{other}'"):
        HQTVAEPipeline.from_pretrained(tmp_path / "ours", device="cpu", quantization=other)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state, key: state.pop(f"{key}_scale"), "{key}: expected {key}_scale beside it; found none"),
        (lambda state, key: state.update({key: state[key][:1]}), "{key}_scale: expected torch.float32 [1]"),
        (lambda state, key: state.update({key: state[key].float()}), "{key}: expected int8 or fp8 [out, in]"),
    ],
    ids=["no scale", "another shape", "floats"],
)
def test_quantized_weights_without_their_scales(change, message, tmp_path):
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", quantization="int8")
    pipe.save_pretrained(tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    state = safetensors.torch.load_file(file)
    key = next(key for key in state if key.endswith(".weight_scale")).removesuffix("_scale")
    change(state, key)
    safetensors.torch.save_file(state, file)
    with pytest.raises(CheckpointError, match=re.escape(message.format(key=key))):
        checkpoint.load(tmp_path / "ours")


def test_stage_one_alone_has_no_transformer():
    pipe = golden_pipeline("stage1_conv2")
    assert pipe.transformer is None
    with pytest.raises(ValueError, match="stage 1 only"):
        pipe(0)


def test_pipeline_saves_a_checkpoint_that_draws_the_same(tmp_path, class_pipeline):
    from hqtvae_fast import HQTVAEPipeline

    class_pipeline.save_pretrained(tmp_path)
    again = HQTVAEPipeline.from_pretrained(tmp_path, device="cpu", dtype="fp32")
    request = {"class_labels": 1, "output_type": "codes", "progress": False}
    for left, right in zip(class_pipeline(**request).codes, again(**request).codes, strict=True):
        assert torch.equal(left, right)


def test_older_keys_and_discriminator(released):
    directory, file = released

    def older(state):
        for key in [key for key in state if key.startswith("stage1.")]:
            state[key.replace("stage1.", "stage1.generator.", 1)] = state.pop(key)
        state["stage1.discriminator.main.0.weight"] = torch.zeros(1)

    rewrite(file, older)
    pixels = golden_values("class_parallel")["image"]
    codes = checkpoint.load(directory).vae.eval().encode(pixels)
    assert torch.equal(codes[0], golden_values("class_parallel")["codes_top"])


def test_bare_state_dict_file(released):
    directory, file = released
    state = torch.load(file, weights_only=True)["state_dict"]
    torch.save(state, file.with_name("state_dict.ckpt"))
    file.unlink()
    assert checkpoint.load(directory).transformer is not None


def test_missing_misshapen_and_unexpected_keys_are_all_named(released):
    directory, file = released

    def spoil(state):
        del state["stage2.ln_f.weight"]
        state["stage1.quantize_t.embedding"] = torch.zeros(64, 63)
        state["stage2.surprise"] = torch.zeros(2)

    rewrite(file, spoil)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(directory)
    message = str(error.value)
    assert str(file) in message
    assert "stage2.ln_f.weight: expected shape [64], found no such key" in message
    assert "stage1.quantize_t.embedding: expected shape [64, 64], found [64, 63]" in message
    assert "stage2.surprise: unexpected key, shape [2]" in message
    assert "\n" not in message


def test_a_mismatch_of_part_of_a_fused_matrix_names_the_part(released):
    directory, file = released
    rewrite(file, lambda state: state.update({"stage2.blocks.1.attn.key.weight": torch.zeros(64, 32)}))
    with pytest.raises(
        CheckpointError, match=r"blocks\.1\.attn\.key\.weight: expected shape \[64, 64\], found \[64, 32\]"
    ):
        checkpoint.load(directory)


def test_many_problems_are_counted(released):
    directory, file = released
    rewrite(file, lambda state: [state.pop(key) for key in list(state) if key.startswith("stage2.")])
    with pytest.raises(CheckpointError, match=r"; and \d+ more$"):
        checkpoint.load(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(released, value):
    directory, file = released
    rewrite(file, lambda state: state["stage2.head_top.weight"].view(-1)[5:6].fill_(value))
    with pytest.raises(CheckpointError, match=r"stage2\.head_top\.weight: expected finite values"):
        checkpoint.load(directory)


def test_truncated_pickle(released):
    directory, file = released
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"last\.ckpt: truncated"):
        checkpoint.load(directory)


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile-code-ran",))


@pytest.mark.parametrize("container", ["zip", "plain"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_hostile_pickle_is_refused_and_not_run(released, container, monkeypatch, tmp_path):
    directory, file = released
    monkeypatch.chdir(tmp_path)
    if container == "zip":
        torch.save({"state_dict": {"stage1.x": Hostile()}}, file)
    else:
        file.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    with pytest.raises(
        CheckpointError, match=r"refused, a checkpoint may hold tensors only; this one (asks to run \w+\.system|holds)"
    ):
        checkpoint.load(directory)
    assert not (tmp_path / "hostile-code-ran").exists()


@pytest.mark.parametrize("content", [{"state_dict": {"stage1.a": 3}}, {"state_dict": [1]}, [torch.zeros(1)]])
def test_not_a_state_dict(released, content):
    directory, file = released
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="expected a"):
        checkpoint.load(directory)


CONFIG_CHANGES = [
    (("stage1", "type"), "vqgan", "config.stage1.type: expected one of simrqgan2, hqvae; got 'vqgan'"),
    (("stage1", "hparams_aux", "shared_codebook"), True, "shared_codebook: only False is supported"),
    (("stage1", "hparams_aux", "upsample"), "bicubic", "upsample: expected one of pixelshuffle, nearest, conv"),
    (("stage2", "type"), "diffusion", "config.stage2.type: expected one of"),
    (("stage2", "hparams", "embedding_type"), "multiple", "embedding_type: expected reduce or transformer1"),
    (("stage2", "hparams", "use_random_order"), True, "use_random_order: only False is supported"),
    (("stage2", "hparams", "n_heads"), 7, "num_heads: expected a divisor of dim = 64; got 7"),
    (("stage2", "vocab_size_img"), 65, "codebook_sizes: expected the VAE's"),
    (("stage2", "ratio_bot2top"), 16, "ratio_bot2top: only 4 is supported"),
    (("stage2",), 3, "config.stage2: expected a mapping; got int"),
]


@pytest.mark.parametrize("path,value,message", CONFIG_CHANGES)
def test_configurations_that_make_no_model(released, path, value, message):
    directory, _ = released
    file = directory / "config.yaml"
    config = yaml.safe_load(file.read_text())
    section = config
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(directory)
    assert str(file) in str(error.value)
    assert message in str(error.value)


def test_broken_yaml(released):
    directory, _ = released
    (directory / "config.yaml").write_text("stage1: [")
    with pytest.raises(CheckpointError, match=r"config\.yaml: cannot be read"):
        checkpoint.load(directory)


@pytest.fixture
def native(tmp_path):
    checkpoint.save(checkpoint.load(GOLDEN / "class_parallel"), tmp_path / "ours")
    return tmp_path / "ours"


def test_native_truncated(native):
    file = native / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated"):
        checkpoint.load(native)


def test_native_mismatch_names_key_and_shapes(native):
    file = native / "model.safetensors"
    state = safetensors.torch.load_file(file)
    state["transformer.norm.weight"] = torch.zeros(3)
    safetensors.torch.save_file(state, file)
    with pytest.raises(CheckpointError, match=r"transformer\.norm\.weight: expected shape \[64\], found \[3\]"):
        checkpoint.load(native)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"format": "other"}, "format: expected 'hqtvae_fast'; got 'other'"),
        ({"version": 99}, "version: expected 1; got 99"),
        ({"extra": 1}, r"unknown field \['extra'\]"),
        ({"transformer": {"sides": 8}}, r"transformer: unknown field \['sides'\]"),
        ({"vae": {"resampler": "magic"}}, "vae.resampler: expected one of pixel_shuffle"),
        (
            {"vae": {"channel_multipliers": 3}},
            "vae.channel_multipliers: expected a list of 1 to 12 integers",
        ),
    ],
)
def test_native_configurations_that_make_no_model(native, change, message):
    file = native / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(native)


@pytest.mark.parametrize(
    "path,message",
    [
        ("no/such/dir", "no such directory"),
        ("/nowhere/at/all", "no such directory"),
        ("./relative", "no such directory"),
    ],
)
def test_paths_that_are_no_checkpoint(path, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_a_file_and_an_empty_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected config\.json or config\.yaml, found neither"):
        checkpoint.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="expected a checkpoint directory; got a file"):
        checkpoint.load(tmp_path / "file")


def test_local_paths_never_touch_the_network(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("asked the Hub for a local path")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", forbidden)
    checkpoint.load(GOLDEN / "stage1_avgpool")
    with pytest.raises(CheckpointError, match="no such directory"):
        checkpoint.load("./missing")


def test_hub_names_go_to_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **kw: asked.append(name) or str(GOLDEN / "stage1_conv2")
    )
    checkpoint.load("someone/some-model")
    assert asked == ["someone/some-model"]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    opened = checkpoint.load(GOLDEN / "stage1_conv2")
    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left"):
        checkpoint.save(opened, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_keeps_what_was_there(native, monkeypatch):
    before = {file.name: file.read_bytes() for file in native.iterdir()}
    monkeypatch.setattr(checkpoint, "json_text", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(checkpoint.load(GOLDEN / "class_sequential"), native)
    assert {file.name: file.read_bytes() for file in native.iterdir()} == before
    assert checkpoint.load(native).config == golden_pipeline("class_parallel").config


def test_a_pair_that_does_not_fit():
    with pytest.raises(
        CheckpointError, match="these two checkpoints make no pair: refiner: expected condition='codes'"
    ):
        checkpoint.with_refiner(checkpoint.load(GOLDEN / "global_top"), checkpoint.load(GOLDEN / "class_parallel"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    "value,finite", [(1.5, True), (float("nan"), False), (float("inf"), False), (-float("inf"), False)]
)
def test_a_value_that_is_not_finite_is_found_wherever_it_is(dtype, value, finite):
    for place in (0, 40, 104):
        tensor = torch.linspace(-3, 3, 105)
        tensor[place] = value
        stored = tensor.to(dtype).view(5, 21)
        assert is_finite(stored) == bool(stored.float().isfinite().all())
        assert is_finite(stored) == finite or dtype is torch.float8_e4m3fn  # which has no infinity
    assert is_finite(torch.zeros(0, 3))
    assert is_finite(torch.arange(3))


def test_a_quantized_layer_is_widened_once_however_it_is_opened_and_moved(tmp_path, monkeypatch):
    """Each reads and writes all of the weight: of S, two seconds."""
    made = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32", quantization="int8")
    made.save_pretrained(tmp_path / "int8")
    widened, wide = [], QuantizedWeight.wide
    monkeypatch.setattr(QuantizedWeight, "wide", lambda self, dtype: widened.append(dtype) or wide(self, dtype))
    pipe = HQTVAEPipeline.from_pretrained(tmp_path / "int8", device="cpu", dtype="fp32")
    layers = quantized_linears(pipe.transformer)
    assert len(widened) == len(layers) > 4
    for name, weight in layers.items():
        assert torch.equal(pipe.transformer.get_submodule(name).weight, wide(weight, torch.float32))
    widened.clear()
    pipe.to(dtype="bf16")
    for name, weight in quantized_linears(pipe.transformer).items():
        assert torch.equal(pipe.transformer.get_submodule(name).weight, wide(weight, torch.bfloat16))
    assert widened == [torch.bfloat16] * len(layers)

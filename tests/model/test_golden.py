"""Every golden case against the released implementation's outputs: 1e-4 absolute in fp32, codes equal."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import CASES, GOLDEN, golden_pipeline, golden_values
from safetensors import safe_open
from safetensors.torch import load_file

from hqtvae_fast.checkpoint import load_stage2_state
from hqtvae_fast.model.autoencoder import Upsample
from hqtvae_fast.model.hqvae import Codebook
from hqtvae_fast.model.pyramid import split_windows
from hqtvae_fast.ops.kernels.sample_logits.reference import filter_logits
from hqtvae_fast.released.config import parse_transformer

TOLERANCE = 1e-4
STAGE2_CASES = [case for case in CASES if not case.startswith("stage1_")]


def level_names(values, stem):
    names = [f"{stem}_top", f"{stem}_bottom"]
    return names if names[0] in values else [f"{stem}_{level}" for level in range(3)]


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(params=CASES)
def case(request):
    return golden_pipeline(request.param), golden_values(request.param)


def test_all_cases_are_here():
    assert len(CASES) == 11
    assert len(STAGE2_CASES) == 9


def test_latents(case):
    pipe, golden = case
    with torch.no_grad():
        assert_close(pipe.vae.latents(golden["image"]), golden["z"])


def test_codes(case):
    pipe, golden = case
    codes = pipe.vae.encode(golden["image"])
    for level, name in zip(codes, level_names(golden, "codes"), strict=True):
        assert level.dtype == torch.int64
        assert torch.equal(level, golden[name])


def test_commitment_losses(case):
    pipe, golden = case
    with torch.no_grad():
        losses = pipe.vae(golden["image"]).commitment
    for loss, name in zip(losses, level_names(golden, "commit"), strict=True):
        assert_close(loss, golden[name])


def test_training_pass_reconstructs(case):
    pipe, golden = case
    output = pipe.vae(golden["image"])
    assert_close(output.reconstruction.detach(), golden["recon"])
    assert output.reconstruction.requires_grad


def test_reconstruction(case):
    pipe, golden = case
    codes = [golden[name] for name in level_names(golden, "codes")]
    with torch.no_grad():
        assert_close(pipe.vae.decode(codes), golden["recon"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("path", ["tables", "lookups", "nothing folded", "reference ops"])
def test_reconstruction_by_every_path(name, path, monkeypatch):
    if path == "reference ops":
        monkeypatch.setenv("HQTVAE_BACKEND", "reference")
    pipe, golden = golden_pipeline(name), golden_values(name)
    codes = [golden[level] for level in level_names(golden, "codes")]
    vae = copy.deepcopy(pipe.vae)
    if path in ("lookups", "nothing folded"):
        vae.prepared = False
    for layer in vae.decoder.modules():
        if isinstance(layer, Upsample) and path == "nothing folded":
            layer.folds = False
    assert (vae.code_tables is not None) == (path in ("tables", "reference ops"))
    with torch.no_grad():
        assert_close(vae.decode(codes), golden["recon"])
        levels = ((golden["recon"] * 0.5 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
        assert float((vae.decode_bytes(codes) - levels).abs().max()) <= 0.5 + 127.5 * TOLERANCE


@pytest.mark.parametrize("kept", ["top", "bottom"])
def test_one_level_alone(case, kept):
    pipe, golden = case
    name = f"recon_{kept}_only"
    if name not in golden:
        assert "codes_2" in golden  # the three-level case records the top-only picture alone
        return
    codes = [golden[level] for level in level_names(golden, "codes")]
    index = 0 if kept == "top" else len(codes) - 1
    with torch.no_grad():
        picture = pipe.vae.decode([level if i == index else None for i, level in enumerate(codes)])
    assert_close(picture, golden[name])


def test_soft_codes(case):
    pipe, golden = case
    soft = pipe.vae.soft_codes(golden["image"], temperature=1.0)
    for level, name in zip(soft, level_names(golden, "soft"), strict=True):
        assert_close(level.flatten(0, 2), golden[name])


def teacher_forcing(golden):
    """Input codes, condition and expected logits, whatever the case calls them."""
    if "in_top" in golden:  # the bottom transformer of global conditioning
        return [golden["in_bottom"]], golden["in_top"], [golden["logits"]], golden["logits_top"]
    if "in_codes" in golden:
        return [golden["in_codes"]], golden["label"], [golden["logits"]], None
    levels = [level for level in range(3) if f"in_codes_{level}" in golden]
    condition = golden.get("label", golden.get("text"))
    logits = [golden[f"logits_{level}"] for level in levels]
    return [golden[f"in_codes_{level}"] for level in levels], condition, logits, golden.get("logits_text")


@pytest.mark.parametrize("name", STAGE2_CASES)
def test_logits(name):
    pipe, golden = golden_pipeline(name), golden_values(name)
    codes, condition, expected, expected_text = teacher_forcing(golden)
    with torch.no_grad():
        logits = pipe.transformer(codes, condition)
    for level, wanted in zip(logits.levels, expected, strict=True):
        assert_close(level, wanted)
    assert (logits.text is None) == (expected_text is None)
    if expected_text is not None:
        assert_close(logits.text, expected_text)


def greedy_request(pipe, golden):
    """The pipeline's arguments for the golden greedy drawing of three images."""
    kind = pipe.transformer.config.condition
    if kind == "class":
        return {"class_labels": golden["greedy_label"], "num_images": 3}
    if kind == "codes":
        return {"given_top_codes": golden["in_top"].view(3, 4, 4)}
    return {"num_images": 3}


@pytest.mark.parametrize("name", STAGE2_CASES)
@pytest.mark.filterwarnings("ignore:the checkpoint draws top codes only")
def test_greedy_codes(name, monkeypatch):
    pipe, golden = golden_pipeline(name), golden_values(name)
    request = greedy_request(pipe, golden)
    if pipe.transformer.config.condition == "text":
        monkeypatch.setattr(pipe, "tokenizer", lambda prompts: golden["text"])
        request = {"prompt": ["", "", ""]}
    output = pipe(**request, top_k=1, output_type="pt", progress=False)
    drawn = output.codes[1:] if pipe.transformer.config.condition == "codes" else output.codes
    names = [key for key in golden if key.startswith("greedy_") and key not in ("greedy_label", "greedy_pixels")]
    order = {"greedy_top": 0, "greedy_bottom": 1}
    for level, (codes, key) in enumerate(zip(drawn, sorted(names, key=lambda k: order.get(k, 0)), strict=True)):
        local = split_windows(codes, pipe.transformer.config.side, level)
        assert torch.equal(local.reshape(golden[key].shape), golden[key])
    if "greedy_pixels" in golden:
        assert_close(output.images, golden["greedy_pixels"])


def test_ema_step():
    golden = golden_values("functions")
    size, dim = golden["ema.before.embedding"].shape
    book = Codebook(size, dim, decay=0.99, epsilon=1e-5)
    keys = {"embedding": "embedding", "cluster_size": "cluster_size", "embedding_sum": "embedding_avg"}
    book.load_state_dict({ours: golden[f"ema.before.{theirs}"] for ours, theirs in keys.items()})
    codes = book.search(golden["ema.z"])
    assert torch.equal(codes, golden["ema.codes"])
    assert_close(book.lookup(codes), golden["ema.quantized"])
    book.update(golden["ema.z"], codes)
    for ours, theirs in keys.items():
        assert_close(getattr(book, ours), golden[f"ema.after.{theirs}"])


FILTERS = [key for key in golden_values("functions") if key.startswith("filter.k")]


@pytest.mark.parametrize("key", FILTERS)
def test_filters(key):
    golden = golden_values("functions")
    k, p, t = (part[1:] for part in key.removeprefix("filter.").split("_"))
    top_k = None if k == "None" else int(k)
    top_p = None if p == "None" else float(p)
    logits, expected = golden["filter.logits"], golden[key]
    actual = filter_logits(logits, float(t), top_k, top_p).softmax(dim=1)
    assert_close(actual.sort(dim=1).values, expected.sort(dim=1).values)
    # Where equal logits straddle the top-p cut, an unstable sort decides which of them stay; ours keeps the lowest
    # indices. Everything above and below such a tie must agree entry by entry.
    last_kept = logits.masked_fill(expected == 0, torch.inf).amin(dim=1, keepdim=True)
    tied_at_cut = (logits == last_kept) & torch.tensor(top_p is not None)
    assert_close(actual.masked_fill(tied_at_cut, 0), expected.masked_fill(tied_at_cut, 0))
    if top_p is not None:
        kept = actual > 0
        assert not (tied_at_cut & ~kept).cummax(dim=1).values.logical_and(tied_at_cut & kept).any()


def test_all_filters_are_here():
    assert len(FILTERS) == 40


VARIANTS = sorted(path.stem for path in (GOLDEN / "variants").glob("*.safetensors"))


def test_all_variants_are_here():
    assert len(VARIANTS) == 5


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name):
    """What released configurations may ask for and the golden checkpoints do not: logits of the released modules."""
    file = GOLDEN / "variants" / f"{name}.safetensors"
    with safe_open(file, framework="pt") as opened:
        stage2 = json.loads(opened.metadata()["stage2"])
    values = load_file(file)
    levels = sum(key.startswith("codes_") for key in values)
    config = parse_transformer(stage2, (4, 8, 16)[:levels])
    state = {key.removeprefix("state."): value for key, value in values.items() if key.startswith("state.")}
    model = load_stage2_state(config, state, origin=name).eval()
    with torch.no_grad():
        logits = model([values[f"codes_{level}"] for level in range(levels)], values.get("condition"))
    for level in range(levels):
        assert_close(logits.levels[level], values[f"logits_{level}"])
    if "logits_text" in values:
        assert_close(logits.text, values["logits_text"])

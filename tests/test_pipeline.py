"""The pipeline's outputs and its refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GOLDEN, engine, golden_pipeline
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import Executor, GenerationError
from hqtvae_fast.text import PromptTokenizer

QUIET = {"progress": False}


def test_output_types(class_pipeline):
    pil = class_pipeline([1, 2], **QUIET).images
    array = class_pipeline([1, 2], output_type="np", **QUIET).images
    tensor = class_pipeline([1, 2], output_type="pt", **QUIET).images
    codes = class_pipeline([1, 2], output_type="codes", **QUIET)
    assert [image.size for image in pil] == [(64, 64)] * 2
    assert array.shape == (2, 64, 64, 3)
    assert array.dtype == np.float32
    assert tensor.shape == (2, 3, 64, 64)
    assert codes.images is None
    assert [level.dtype for level in codes.codes] == [torch.int64] * 2
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(pil[1]), np.round(array[1] * 255).astype(np.uint8))


def test_labels_come_in_every_shape(class_pipeline):
    expected = class_pipeline([3], output_type="codes", **QUIET).codes
    for labels in (3, (3,), torch.tensor(3), torch.tensor([3]), np.array([3]), np.int64(3)):
        codes = class_pipeline(labels, output_type="codes", **QUIET).codes
        assert all(torch.equal(a, b) for a, b in zip(codes, expected, strict=True))


def test_an_image_can_be_drawn_again_alone(class_pipeline):
    three = class_pipeline(5, num_images=3, seed=9, output_type="pt", **QUIET)
    again = class_pipeline(5, seed=[three.seeds[2]], output_type="pt", **QUIET)
    assert torch.equal(three.codes[1][2:], again.codes[1])


def test_bf16_draws_valid_codes():
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype=torch.bfloat16)
    output = pipe([0, 1], output_type="pt", **QUIET)
    assert pipe.transformer.norm.weight.dtype == torch.bfloat16
    assert pipe.vae.encoder.conv_in.weight.dtype == torch.float32
    assert output.images.dtype == torch.float32
    assert bool(output.images.isfinite().all())
    assert all(int(level.min()) >= 0 and int(level.max()) < 64 for level in output.codes)


def test_bf16_stays_near_fp32():
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="bf16")
    codes = golden_pipeline("class_parallel")([0, 1, 2], output_type="codes", **QUIET).codes
    exact, rounded = golden_pipeline("class_parallel").decode(codes, "pt"), pipe.decode(codes, "pt")
    assert float((exact - rounded).abs().mean()) < 0.01


def test_overlapped_batches_are_the_same():
    where, options = {"device": "cpu", "dtype": "fp32"}, {"class_labels": [1, 2, 3], "batch_size": 1, "progress": False}
    plain, beside = (
        HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", **where, plan=engine(text))(
            **options, output_type="pt"
        )
        for text in ("", "overlap=on")
    )
    assert torch.equal(plain.images, beside.images)
    assert all(torch.equal(a, b) for a, b in zip(plain.codes, beside.codes, strict=True))


def test_dtype_is_kept_when_moving():
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32")
    assert pipe.to("cpu").dtype == torch.float32
    assert pipe.to(dtype="bf16").dtype == torch.bfloat16


def test_encode_and_decode(class_pipeline):
    picture = Image.effect_mandelbrot((100, 80), (-2, -1, 1, 1), 50).convert("RGB")
    codes = class_pipeline.encode([picture])
    assert [tuple(level.shape) for level in codes] == [(1, 4, 4), (1, 8, 8)]
    assert class_pipeline.decode(codes)[0].size == (64, 64)
    top_only = class_pipeline.decode([codes[0], None], "pt")
    assert not torch.equal(top_only, class_pipeline.decode(codes, "pt"))


@pytest.fixture
def text_pipeline(tmp_path):
    words = {"[PAD]": 0, "[UNK]": 1, "red": 2, "apple": 3, "tiger": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "text_parallel", device="cpu", dtype="fp32")
    pipe.tokenizer = PromptTokenizer(file, length=8, vocab_size=50)
    return pipe


def test_prompts(text_pipeline):
    both = text_pipeline(prompt=["red apple", "tiger"], num_images=2, seed=[0, 1, 0, 1], output_type="codes", **QUIET)
    one = text_pipeline(prompt="tiger", num_images=2, seed=[0, 1], output_type="codes", **QUIET)
    assert len(both.codes[0]) == 4
    assert torch.equal(both.codes[1][2:], one.codes[1])


def test_prompts_are_padded_and_truncated(text_pipeline):
    with pytest.warns(UserWarning, match="prompt: the model reads 8 tokens"):
        ids = text_pipeline.tokenizer(["red apple", "red " * 30])
    assert ids.tolist() == [[2, 3, 0, 0, 0, 0, 0, 0], [2] * 8]


def test_a_tokenizer_with_more_words_than_the_model(text_pipeline):
    with pytest.raises(ValueError, match="expected at most 4 tokens, as the model has; got 5"):
        PromptTokenizer(text_pipeline.tokenizer.file, length=8, vocab_size=4)


def test_a_text_model_without_tokenizer():
    with pytest.raises(ValueError, match=r"expected a tokenizer\.json"):
        golden_pipeline("text_parallel")(prompt="red apple")


BAD_REQUESTS = [
    ({"class_labels": 10}, "class_labels: expected 0 to 9; got 10"),
    ({"class_labels": -1}, "class_labels: expected 0 to 9; got -1"),
    ({"class_labels": [1, 99]}, "got 99"),
    ({"class_labels": []}, "class_labels: expected an integer or a list of them"),
    ({"class_labels": 1.5}, "class_labels: expected an integer"),
    ({"class_labels": "cat"}, "class_labels: expected an integer"),
    ({}, "class-conditional: expected class_labels; got none"),
    ({"prompt": "a cat"}, "class-conditional: expected class_labels; got prompt"),
    ({"class_labels": 1, "prompt": "a cat"}, "expected class_labels; got class_labels and prompt"),
    ({"class_labels": 1, "top_k": 65}, "top_k: expected an integer from 1 to 64, or None; got 65"),
    ({"class_labels": 1, "top_k": 0}, "top_k"),
    ({"class_labels": 1, "top_k": [1, 2, 3]}, "top_k: expected one value, or 2, one a level; got 3"),
    ({"class_labels": 1, "top_p": 0}, r"top_p: expected a number in \(0, 1\]"),
    ({"class_labels": 1, "top_p": 1.5}, "top_p"),
    ({"class_labels": 1, "temperature": 0}, "temperature: expected a number from 1e-30 to 1e[+]30 .*; got 0"),
    ({"class_labels": 1, "temperature": -1.0}, "temperature"),
    ({"class_labels": 1, "num_images": 0}, "num_images: expected an integer of at least 1; got 0"),
    ({"class_labels": 1, "batch_size": 0}, "batch_size: expected an integer of at least 1; got 0"),
    ({"class_labels": 1, "output_type": "jpeg"}, "output_type: expected one of pil, np, pt, codes; got 'jpeg'"),
    ({"class_labels": 1, "seed": [1, 2]}, "seed: expected an int, or 1 of them"),
    ({"class_labels": 1, "given_top_codes": torch.zeros(3, 3, dtype=torch.int64)}, r"expected integers \[4, 4\]"),
    ({"class_labels": 1, "given_top_codes": torch.zeros(4, 4)}, "given_top_codes: expected integers"),
    ({"class_labels": 1, "given_top_codes": torch.full((4, 4), 64)}, "expected codes from 0 to 63; got 64"),
    (
        {"class_labels": 1, "given_top_codes": torch.zeros(3, 4, 4, dtype=torch.int64)},
        "given_top_codes: expected 1; got 3",
    ),
]


@pytest.mark.parametrize("request_,message", BAD_REQUESTS)
def test_refusals(class_pipeline, request_, message):
    with pytest.raises(ValueError, match=message):
        class_pipeline(**request_, **QUIET)


def test_an_unconditional_model_takes_no_condition():
    with pytest.raises(ValueError, match="not conditional on either: expected none; got class_labels"):
        golden_pipeline("uncond_reduce")(class_labels=1)


def test_a_text_model_takes_no_class(text_pipeline):
    with pytest.raises(ValueError, match="text-conditional: expected prompt; got class_labels"):
        text_pipeline(class_labels=1)
    with pytest.raises(ValueError, match="prompt: expected a string or a list of strings"):
        text_pipeline(prompt=[1])


def test_a_bottom_model_needs_top_codes():
    with pytest.raises(ValueError, match="given_top_codes: this checkpoint draws bottom codes only"):
        golden_pipeline("global_bottom")()


def test_a_top_model_says_that_its_pictures_are_coarse():
    with pytest.warns(UserWarning, match="draws top codes only"):
        output = golden_pipeline("global_top")(1, **QUIET)
    assert len(output.codes) == 1
    assert len(output.images) == 1


@pytest.mark.parametrize(
    "options,message",
    [
        ({"device": "cudda"}, "device: expected cpu, cuda or cuda:N that is present here; got 'cudda'"),
        ({"dtype": "int3"}, "dtype: expected one of fp32, tf32, bf16, fp16"),
        ({"dtype": torch.int64}, "dtype: expected one of"),
    ],
)
def test_devices_and_dtypes_that_are_not(options, message):
    with pytest.raises(ValueError, match=message):
        HQTVAEPipeline.from_pretrained(GOLDEN / "stage1_conv2", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu():
    with pytest.raises(ValueError, match=r"device: expected .* present here; got 'cuda'"):
        HQTVAEPipeline.from_pretrained(GOLDEN / "stage1_conv2", device="cuda")


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 64, 64), (3, 64, 64)])
def test_images_of_the_wrong_size(class_pipeline, shape):
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, 64, 64\]; got"):
        class_pipeline.vae.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    "codes,message",
    [
        ([None, None], "expected at least one level"),
        ([torch.zeros(1, 4, 4, dtype=torch.int64)], "expected 2 levels"),
        ([torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(2, 8, 8, dtype=torch.int64)], "one batch size"),
        ([torch.zeros(1, 8, 8, dtype=torch.int64), None], r"codes of level 0: expected \[B, 4, 4\]"),
    ],
)
def test_codes_of_the_wrong_shape(class_pipeline, codes, message):
    with pytest.raises(ValueError, match=message):
        class_pipeline.vae.decode(codes)


def test_codes_out_of_range(class_pipeline):
    with pytest.raises(ValueError, match="codes of level 0: expected codes from 0 to 63; got 64 to 64"):
        class_pipeline.decode([torch.full((1, 4, 4), 64), None])
    with pytest.raises(ValueError, match="codes of level 0: expected integers"):
        class_pipeline.decode([torch.zeros(1, 4, 4), None])


def test_device_and_dtype_are_checked_before_the_checkpoint_is_read():
    with pytest.raises(ValueError, match="device: expected"):
        HQTVAEPipeline.from_pretrained("no/such/directory/at/all", device="cudda")


# ----------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "codes"])
def test_a_stream_gives_what_a_call_gives(class_pipeline, output_type):
    asked = {"num_images": 3, "seed": 4, "batch_size": 4, "output_type": output_type}
    whole = class_pipeline([1, 2], **asked, **QUIET)
    images = list(class_pipeline.stream([1, 2], **asked))
    assert [image.index for image in images] == list(range(6))
    assert tuple(image.seed for image in images) == whole.seeds
    for image in images:
        assert all(torch.equal(own, level[image.index]) for own, level in zip(image.codes, whole.codes, strict=True))
        if output_type == "codes":
            assert image.image is None
        else:
            np.testing.assert_array_equal(np.asarray(image.image), np.asarray(whole.images[image.index]))


def test_a_stream_refuses_at_once(class_pipeline):
    for wrong in ({"class_labels": 99}, {"class_labels": 1, "batch_size": 0}, {"class_labels": 1, "top_k": 0}):
        with pytest.raises(ValueError, match="expected"):
            class_pipeline.stream(**wrong)
    with pytest.raises(ValueError, match="deterministic: expected one of batch; got 'always'"):
        class_pipeline(1, deterministic="always", **QUIET)


def test_a_stream_that_is_left_draws_no_more(class_pipeline, monkeypatch):
    original, batches = Executor.draw, []

    def counted(self, *rows, **how):
        batches.append(len(rows[1]))
        return original(self, *rows, **how)

    monkeypatch.setattr(Executor, "draw", counted)
    for image in class_pipeline.stream(1, num_images=50, batch_size=2):
        if image.index == 3:
            break
    assert batches == [2, 2]


def test_errors_name_the_images(class_pipeline, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr("hqtvae_fast.engine.executor.Drawing.run", broken)
    with pytest.raises(GenerationError, match=r"images 0 to 2 \(classes 1, 2, 3; seeds 7, 8, 9\): device-side assert"):
        class_pipeline([1, 2, 3], seed=[7, 8, 9], **QUIET)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_fixed_batches_give_the_same_bits_in_any_company(dtype):
    """One at a time, seven, all at once, shuffled."""
    pipe = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype=dtype)
    fixed = {"batch_size": 8, "deterministic": "batch", "output_type": "codes", **QUIET}
    seeds = list(range(20, 28))
    whole = pipe(3, num_images=8, seed=seeds, **fixed).codes
    seven = pipe(3, num_images=7, seed=seeds[:7], **fixed).codes
    order = [5, 2, 7, 0, 6, 1, 4, 3]
    shuffled = pipe(3, num_images=8, seed=[seeds[index] for index in order], **fixed).codes
    for level, (all_at_once, part, mixed) in enumerate(zip(whole, seven, shuffled, strict=True)):
        assert torch.equal(part, all_at_once[:7])
        assert torch.equal(mixed, all_at_once[order])
        for index in (0, 6):
            alone = pipe(3, seed=[seeds[index]], **fixed).codes[level]
            assert torch.equal(alone[0], all_at_once[index])

"""What a user may give in Python: numbers of every library, pictures of every kind; and clear errors for the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_pipeline
from PIL import Image

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.arguments import integer, integers, real
from hqtvae_fast.engine.coding import EncodeReplay
from hqtvae_fast.engine.options import read_precision
from hqtvae_fast.fields import shown
from hqtvae_fast.ops.kernels.hierarchical_quantize import hierarchical_quantize
from hqtvae_fast.seeds import image_seeds

R = 64
DRAW = {"class_labels": 1, "output_type": "codes", "progress": False}


@pytest.fixture
def pipe():
    return golden_pipeline("class_parallel")


def drawn(pipe, **changes):
    return pipe(**{**DRAW, **changes})


def same(left, right):
    return all(torch.equal(one, other) for one, other in zip(left.codes, right.codes, strict=True))


def pictures(count=2):
    return torch.rand(count, 3, R, R, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ------------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    "seed", [np.int64(3), np.int32(3), np.uint8(3), torch.tensor(3), torch.tensor([3]), np.array([3]), [np.int64(3)]]
)
def test_F21_seeds_of_every_library(pipe, seed):
    assert image_seeds(seed, 1).tolist() == [3]
    assert drawn(pipe, seed=seed).seeds == (3,)


def test_F21_a_generator_gives_the_seed_and_moves_on(pipe):
    first, again = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    output = drawn(pipe, seed=first)
    assert output.seeds == drawn(pipe, seed=again).seeds
    assert output.seeds != drawn(pipe, seed=first).seeds
    assert same(output, drawn(pipe, seed=list(output.seeds)))


def test_F21_no_seed_is_a_fresh_one_that_is_told(pipe):
    before = torch.random.get_rng_state()
    output, other = drawn(pipe, seed=None, num_images=3), drawn(pipe, seed=None, num_images=3)
    assert not set(output.seeds) & set(other.seeds)
    assert same(output, drawn(pipe, seed=output.seeds, num_images=3))
    assert torch.equal(before, torch.random.get_rng_state()), "torch's own stream moved on"


@pytest.mark.parametrize("seed", [3.0, "3", True, [3.7], ["3"], b"3", {}, np.float32(3), torch.tensor(3.0), [True]])
def test_F21_other_seeds_are_refused(seed):
    with pytest.raises(
        ValueError, match=r"^seed: expected an integer, a sequence of them .*, a torch\.Generator or None"
    ):
        image_seeds(seed, 1)


@pytest.mark.parametrize("count", [np.int64(2), torch.tensor(2), np.uint16(2)])
def test_F21_counts_of_every_library(pipe, count):
    assert same(drawn(pipe, num_images=count, batch_size=count), drawn(pipe, num_images=2))


@pytest.mark.parametrize("name", ["num_images", "batch_size"])
@pytest.mark.parametrize("count", [0, -1, 1.0, 2.5, "2", True, [1], np.float64(1)])
def test_F21_other_counts_are_refused(pipe, name, count):
    with pytest.raises(ValueError, match=f"^{name}: expected an integer of at least 1; got "):
        drawn(pipe, **{name: count})


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": np.array([5, 7])},
        {"top_k": torch.tensor([5, 7])},
        {"top_k": (np.int64(5), torch.tensor(7)), "temperature": np.float32(1)},
        {"top_k": [5, 7], "temperature": torch.tensor(1.0), "top_p": np.float64(1)},
        {"top_k": [5, 7], "temperature": np.array([1.0, 1.0]), "top_p": [None, 1]},
    ],
)
def test_F21_sampling_numbers_of_every_library(pipe, sampling):
    assert same(drawn(pipe, **sampling), drawn(pipe, top_k=[5, 7]))


@pytest.mark.parametrize("name", ["top_k", "top_p", "temperature"])
@pytest.mark.parametrize("value", ["1", b"1", True, float("nan"), float("inf"), 0, -1, {}, np.array(["1", "1"]), 1j])
def test_F21_other_sampling_numbers_are_refused(pipe, name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected (an integer|a number).*; got "):
        drawn(pipe, **{name: value})


@pytest.mark.parametrize(
    "labels", [np.int64(1), np.array([1], np.uint16), [np.uint8(1)], torch.tensor([1]).to(torch.uint16)]
)
def test_F21_labels_of_every_library(pipe, labels):
    assert same(drawn(pipe, class_labels=labels), drawn(pipe))


@pytest.mark.parametrize("labels", ["1", 1.0, [True], [1.5], [[]], {}, [None], np.array(["1"])])
def test_F21_other_labels_are_refused(pipe, labels):
    with pytest.raises(ValueError, match=r"^class_labels: expected an integer or a list of them; got "):
        drawn(pipe, class_labels=labels)


def test_F21_readers_name_what_came():
    assert integer("n", np.int16(7), 1, 9) == 7
    assert real("t", torch.tensor(0.5, dtype=torch.float64)) == 0.5
    assert integers("codes", [[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match=r"^n: expected an integer from 1 to 9; got 10$"):
        integer("n", 10, 1, 9)
    with pytest.raises(ValueError, match=r"^t: expected a number; got float32 \[2\]$"):
        real("t", torch.zeros(2))
    with pytest.raises(ValueError, match=r"^codes: expected integers; got '\['$"):
        integers("codes", "[")


@pytest.mark.parametrize(
    "value, said",
    [
        (torch.zeros(2, 3), "float32 [2, 3]"),
        (np.zeros((2,), np.int16), "int16 [2]"),
        (torch.tensor(2.5), "2.5"),
        (np.float64(0.5), "0.5"),
        ("x" * 200, f"'{'x' * 37}...{'x' * 38}'"),
        (list(range(10**6)), "[0, 1, 2, 3, 4, 5, ...]"),
        pytest.param(10**5000, "int", id="digits"),  # Python writes no integer of so many
    ],
)
def test_what_came_is_told_in_few_characters(value, said):
    assert shown(value) == said
    with pytest.raises(ValueError, match=r"^n: expected an integer from 1 to 9; got ") as error:
        integer("n", value, 1, 9)
    assert str(error.value).endswith(f"got {said}")


# ---------------------------------------------------------------------------------------------------- dtypes, devices


@pytest.mark.parametrize(
    "name, dtype",
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_T8_dtypes_by_torchs_names(name, dtype):
    assert read_precision(name).dtype is dtype
    assert not read_precision(name).tf32


@pytest.mark.parametrize("name", ["float64", torch.float64, 32, ["fp32"], None, np.float32])
def test_T8_other_dtypes_are_refused(name):
    with pytest.raises(ValueError, match=r"^dtype: expected one of fp32, tf32, bf16, fp16"):
        read_precision(name)


def test_T8_a_dtype_alone_moves_a_pipeline():
    own = HQTVAEPipeline.from_pretrained(GOLDEN / "stage1_conv2", device="cpu", dtype="float32")
    assert own.to(torch.bfloat16).dtype is torch.bfloat16
    assert own.to("float32").dtype is torch.float32
    assert own.to("cpu", "bfloat16").dtype is torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^device: expected .* present here; got 'cuda'"):
            own.to("cuda")
    assert own.dtype is torch.bfloat16
    assert own.device == torch.device("cpu")


def test_T13_a_pipeline_says_what_it_is(pipe):
    text = repr(pipe)
    assert "draws 64x64 pictures from class labels; 1.2 M parameters" in text
    assert "codes 4x4 of 64 + 8x8 of 64" in text
    assert text.endswith("float32 on cpu)")


# --------------------------------------------------------------------------------------------------------------- Hub


def test_missing_options_of_the_hub(monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, **options):
        asked.append((name, options["revision"], options["token"], options["cache_dir"], options["local_files_only"]))
        return str(GOLDEN / "stage1_conv2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    options = {"revision": "v2", "token": "secret", "cache_dir": "there", "local_files_only": True}
    HQTVAEPipeline.from_pretrained("somebody/model", device="cpu", **options)
    assert asked == [("somebody/model", "v2", "secret", "there", True)]


def test_missing_local_files_only_without_the_files(tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match="somebody/model: no such directory, and the Hub gave none"):
        HQTVAEPipeline.from_pretrained("somebody/model", cache_dir=tmp_path, local_files_only=True)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_T8_pictures_of_every_kind(pipe, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (R, R, 3), np.uint8)
    image, file = Image.fromarray(array), tmp_path / "a.png"
    image.save(file)
    expected = pipe.encode([image])
    as_bytes = torch.from_numpy(array).permute(2, 0, 1)[None]
    kinds = (image, str(file), file, [file], [str(file)], array, [array], array[None], as_bytes, as_bytes / 127.5 - 1)
    for kind in kinds:
        found = pipe.encode(kind)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)), type(kind)
    grey = np.full((R, R), 40, np.uint8)
    assert torch.equal(pipe.encode(grey)[1], pipe.encode(Image.fromarray(grey))[1])


def test_T8_no_pictures_have_no_codes(pipe):
    for nothing in ([], (), torch.zeros(0, 3, R, R), np.zeros((0, R, R, 3), np.uint8)):
        assert [list(level.shape) for level in pipe.encode(nothing)] == [[0, 4, 4], [0, 8, 8]]


@pytest.mark.parametrize(
    "images, message",
    [
        (["/no/such.png"], "/no/such.png: no such file"),
        (5, "images: expected pictures: .*; got 5"),
        (b"abc", "images: expected pictures"),
        ([None], r"images\[0\]: expected one of pictures: .*; got None"),
        ([torch.zeros(3, R, R)], r"images\[0\]: expected one of pictures: .*; got float32 \[3, 64, 64\]"),
        ([Image.new("RGB", (0, 5))], r"images\[0\]: expected a picture with pixels; got 0x5"),
        ([Image.new("F", (R, R))], r"images\[0\]: expected 8 or 16 bits a channel"),
        (np.zeros((R, R, 3), np.float32), r"images\[0\]: expected a uint8 array .*; got float32 \[64, 64, 3\]"),
        (torch.zeros(1, 3, R, R, dtype=torch.int64), "images: expected floating-point numbers from -1 to 1; got int64"),
        (torch.zeros(3, R, R), r"images: expected \[B, 3, 64, 64\]; got \[3, 64, 64\]"),
        (torch.zeros(1, R, R, 3, dtype=torch.uint8), r"images: expected \[B, 3, 64, 64\]; got \[1, 64, 64, 3\]"),
    ],
)
def test_T8_other_pictures_are_refused(pipe, images, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        pipe.encode(images)


def spoilt(value):
    images = pictures()
    images[1, 0, 3, 5] = value
    return images


@pytest.mark.parametrize("case", ["class_parallel", "stage1_conv2", "stage1_avgpool", "class_level3"])
def test_F9_nan_is_no_code(case):
    pipe = golden_pipeline(case)
    message = "images: expected finite numbers; got NaN or infinity in image 1"
    for code in (
        pipe.encode,
        pipe.vae.encode,
        EncodeReplay(pipe.vae, 2),
        lambda images: pipe.vae.soft_codes(images, 1.0),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            code(spoilt(float("nan")))


@pytest.mark.parametrize("scale, shift", [(127.5, 127.5), (1.2, 0.0), (float("inf"), 0.0)])
def test_F9_values_out_of_range_are_refused(pipe, scale, shift):
    images = pictures() * scale + shift
    for code in (pipe.encode, pipe.vae.encode, EncodeReplay(pipe.vae, 2)):
        with pytest.raises(ValueError, match=r"^images: expected values from -1 to 1; got "):
            code(images)


def test_F9_bytes_are_refused_where_only_numbers_are_read(pipe):
    for code in (pipe.vae.encode, EncodeReplay(pipe.vae, 2)):
        with pytest.raises(ValueError, match="expected floating-point numbers from -1 to 1; got uint8"):
            code(torch.zeros(2, 3, R, R, dtype=torch.uint8))


def test_F9_what_is_invalid_is_told_without_waiting(pipe):
    invalid = torch.zeros(2, dtype=torch.bool)
    codes = pipe.vae.encode(spoilt(float("nan")), invalid=invalid)
    assert invalid.tolist() == [False, True]
    assert all(torch.equal(level[:1], own) for level, own in zip(codes, pipe.vae.encode(pictures(2)[:1]), strict=True))


def test_F9_a_replay_forgets_an_invalid_row(pipe):
    replay, images = EncodeReplay(pipe.vae, 2), pictures()
    with pytest.raises(ValueError, match="in image 1"):
        replay(spoilt(float("nan")))
    expected = pipe.vae.encode(images[:1])  # row 1 of the buffer still holds NaN
    assert all(torch.equal(one, other) for one, other in zip(replay(images[:1]), expected, strict=True))


def test_F9_broken_weights_are_told_from_broken_pictures(tmp_path):
    own = HQTVAEPipeline.from_pretrained(GOLDEN / "stage1_conv2", device="cpu", dtype="fp32")
    with torch.no_grad():
        own.vae.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="the encoder gave NaN or infinity for image 0: expected finite weights"):
        own.vae.encode(pictures())


def test_F9_the_search_over_levels_tells_of_nan(pipe):
    books = [book.embedding for book in pipe.vae.codebooks]
    z = torch.randn(2, pipe.config.vae.embed_dim, 8, 8, generator=torch.Generator().manual_seed(0))
    z[1, 2, 3, 4] = float("inf")
    invalid = torch.zeros(2, dtype=torch.bool)
    hierarchical_quantize(z, books, invalid=invalid)
    assert invalid.tolist() == [False, True]
    with pytest.raises(ValueError, match="z: expected finite numbers; got NaN or infinity in image 1"):
        hierarchical_quantize(z, books, check=True)

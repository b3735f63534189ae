"""Networks against the implementations they stand for, whose outputs are kept in golden/.

``inception.safetensors``: torch-fidelity 0.4.0's Inception with the weights that :func:`drawn_weights` draws.
``clip/``: a tiny random CLIP and what transformers 5.24.0 computes with it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from hqtvae_fast.evaluate import open_extractor
from hqtvae_fast.evaluate.extractors.clip import DEVIATION, MEAN, load_clip
from hqtvae_fast.evaluate.extractors.efficientnet import EfficientNetLogits, load_efficientnet
from hqtvae_fast.evaluate.extractors.inception import Inception
from hqtvae_fast.evaluate.extractors.resize import antialiased, tensorflow_bilinear
from hqtvae_fast.evaluate.extractors.weights import file_hash

from .conftest import make_pixels

GOLDEN = Path(__file__).parent / "golden"
MILITARY_UNIFORM = 652


def drawn_weights(module: nn.Module) -> dict[str, Tensor]:
    """Weights as large as trained ones, the same for the same names."""
    generator, drawn = torch.Generator().manual_seed(0), {}
    for name, value in sorted(module.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("conv.weight"):
            drawn[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            drawn[name] = torch.rand(value.shape, generator=generator) + 0.5
        else:
            drawn[name] = torch.randn(value.shape, generator=generator) * 0.1
    return drawn


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}  # in the shared file, not used
    torch.save({**drawn_weights(Inception()), **classifier}, file)
    return file


def test_inception_gives_torch_fidelitys_features(inception_file: Path):
    golden = load_file(GOLDEN / "inception.safetensors")
    extractor = open_extractor(f"inception:{inception_file}")
    found = extractor(golden["images"])
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, golden["features"], rtol=1e-4, atol=1e-4)


def test_only_fids_own_weights_are_called_fid(inception_file: Path):
    extractor = open_extractor(f"inception:{inception_file}")
    assert not extractor.is_fid
    assert extractor.distance_name == f"Fréchet distance, inception-v3 {file_hash(inception_file)[:8]}"


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    state = drawn_weights(Inception())
    state["Mixed_6c.branch_pool.conv.weight"] = torch.zeros(192, 768, 3, 3)
    torch.save(state, tmp_path / "odd.pth")
    wanted = r"Mixed_6c\.branch_pool\.conv\.weight: expected \[192, 768, 1, 1\]; got \[192, 768, 3, 3\]"
    with pytest.raises(ValueError, match=wanted):
        open_extractor(f"inception:{tmp_path / 'odd.pth'}")
    with pytest.raises(ValueError, match="no such file"):
        open_extractor(f"inception:{tmp_path / 'none.pth'}")


def test_clip_gives_transformers_embeddings():
    golden, clip = load_file(GOLDEN / "clip" / "golden.safetensors"), load_clip(GOLDEN / "clip")
    tokens = clip.tokens(["a red cube", "the green cat on a blue sphere dog dog dog", "dog"])
    assert tokens.shape == (3, 8)  # the second is cut to the model's length, its end mark kept
    with torch.no_grad():
        pictures, texts = clip.pictures(golden["images"]), clip.texts(tokens)
    torch.testing.assert_close(pictures, golden["image_embeds"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(texts, golden["text_embeds"], rtol=1e-5, atol=1e-5)
    found = open_extractor(f"clip:{GOLDEN / 'clip'}")(golden["images"])
    torch.testing.assert_close(found, golden["image_embeds"], rtol=1e-5, atol=1e-5)


def test_clips_older_configs_read_the_text_at_the_same_place(tmp_path: Path):
    shutil.copytree(GOLDEN / "clip", tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    captions = ["a red cube", "dog"]
    one, other = (load_clip(folder) for folder in (GOLDEN / "clip", tmp_path / "clip"))
    assert torch.equal(one.texts(one.tokens(captions)), other.texts(other.tokens(captions)))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: no such file"):
        open_extractor(f"clip:{tmp_path}")


def test_clips_constants_are_those_of_its_preprocessing():
    assert pytest.approx((0.481, 0.458, 0.408), abs=5e-4) == MEAN
    assert pytest.approx((0.269, 0.261, 0.276), abs=5e-4) == DEVIATION


def test_efficientnet_knows_a_uniform():
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    square = photo.crop((0, 0, photo.width, photo.width))
    images = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    network = load_efficientnet().eval()
    with torch.no_grad():
        assert EfficientNetLogits(network)(images).argmax() == MILITARY_UNIFORM
        extractor = open_extractor("efficientnet-lite0")
        assert extractor.distance_name == "Fréchet distance, efficientnet-lite0"
        torch.testing.assert_close(network._fc(extractor(images)), EfficientNetLogits(network)(images))


@pytest.mark.parametrize("kind", ["exported", "script", "python"])
def test_a_users_own_network(kind: str, request: pytest.FixtureRequest):
    spec = f"{__package__}.conftest:pooled" if kind == "python" else str(request.getfixturevalue(kind))
    extractor = open_extractor(spec)
    images = torch.from_numpy(make_pixels(3)).permute(0, 3, 1, 2)
    found = extractor(images)
    assert found.shape == (3, 12)
    torch.testing.assert_close(found[:, 0], images[:, 0, :8, :8].float().mean(dim=(1, 2)) / 255)
    with pytest.raises(ValueError, match=r"expected uint8 \[B, 3, R, R\]; got torch\.float32"):
        extractor(images.float())


@pytest.mark.parametrize(
    "spec, message",
    [
        ("resnet", "expected inception:FILE, clip:DIR, efficientnet-lite0"),
        ("no_such_module:factory", "expected package.module:factory"),
        ("math:pi_", "expected package.module:factory"),
        ("torch.nn:ReLU6.nothing", "expected package.module:factory"),
        ("builtins:dict", "expected a function that returns a torch module; got dict"),
        ("none.pt", "no such file"),
    ],
)
def test_what_is_no_network_is_refused(spec: str, message: str):
    with pytest.raises(ValueError, match=message):
        open_extractor(spec)


def test_tensorflows_resize_reads_where_it_read():
    row = torch.arange(5.0).expand(1, 3, 4, 5) * 10
    found = tensorflow_bilinear(row, 10)
    # Place i * 5 / 10, without half pixels; past the last pixel it stays.
    assert found[0, 0, 0].tolist() == [0, 5, 10, 15, 20, 25, 30, 35, 40, 40]


def test_resize_is_pils():
    array = make_pixels(1, side=64)[0]
    wanted = np.asarray(Image.fromarray(array).resize((24, 24), Image.Resampling.BICUBIC)).astype(float)
    found = antialiased(torch.from_numpy(array).permute(2, 0, 1)[None], 24)[0].permute(1, 2, 0)
    assert np.abs(found.numpy() - wanted).max() < 1.01

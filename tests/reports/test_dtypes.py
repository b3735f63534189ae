"""Numbers do not depend on what another library has set in torch: default dtype, default device, autocast; nor does a
temperature near 0 give anything but the likeliest code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, engine
from torch import Tensor
from torch.utils._pytree import tree_flatten

import hqtvae_fast
from hqtvae_fast import HQTVAEPipeline, ops
from hqtvae_fast.config import BlocksConfig, TransformerConfig, VAEConfig
from hqtvae_fast.evaluate.frechet import Moments
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.ops import cpu_library
from hqtvae_fast.ops.kernels.sample_logits import BACKENDS as DRAWS
from hqtvae_fast.ops.kernels.sample_logits import COLDEST, HOTTEST
from hqtvae_fast.ops.spec import all_specs
from hqtvae_fast.train.losses import hinge_generator_loss
from hqtvae_fast.train.losses.discriminator import PatchDiscriminator
from hqtvae_fast.train.losses.perceptual import VGG16Trunk

PACKAGE = Path(hqtvae_fast.__file__).parent
SPECS = all_specs()
VAE = VAEConfig(
    resolution=16,
    channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    attention_resolutions=(),
    latent_channels=16,
    embed_dim=8,
    codebook_sizes=(16, 16),
)
SIDE = VAE.level_sides[0]
BLOCKS = BlocksConfig(num_layers=1, num_heads=2)
TRANSFORMER = TransformerConfig(
    dim=32, num_classes=2, codebook_sizes=(16, 16), side=SIDE, max_positions=SIDE**2, body=BLOCKS, head=BLOCKS
)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


WORLDS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def pipeline(case: str = "class_parallel", dtype: str = "fp32", **options: bool) -> HQTVAEPipeline:
    return HQTVAEPipeline.from_pretrained(GOLDEN / case, device="cpu", dtype=dtype, **options)


def use(pipe: HQTVAEPipeline, pixels: Tensor) -> list[Tensor]:
    """Everything that a pipeline computes."""
    how = {"class_labels": [1, 0], "num_images": 2, "seed": 3, "progress": False}
    drawn = pipe(**how, temperature=0.93, top_p=0.9, top_k=7, output_type="pt")
    free = pipe(**how, temperature=(0.95, 1.3), output_type="codes")
    codes = pipe.encode(pixels)
    shown = [pipe.decode(codes, "pt"), pipe.vae.decode(codes), pipe.vae.decode([codes[0], None])]
    return [drawn.images, *drawn.codes, *free.codes, *codes, *shown, *pipe.vae.soft_codes(pixels, 0.7)]


def same(got: object, wanted: object) -> bool:
    (left, how), (right, other) = tree_flatten(got), tree_flatten(wanted)
    return how == other and all(
        a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(left, right, strict=True)
    )


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    R = pipeline().config.vae.resolution
    return torch.rand(2, 3, R, R, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("dtype", ["fp32", slow("bf16")])
@pytest.mark.parametrize("world", ["bfloat16", "meta", slow("float16"), slow("float64")])
def test_F1_a_pipeline_computes_the_same(world, dtype, pixels):
    wanted = use(pipeline(dtype=dtype), pixels)
    with WORLDS[world]():
        pipe = pipeline(dtype=dtype)
        got = use(pipe, pixels)
    assert same(got, wanted)


@pytest.mark.parametrize("world", ["bfloat16", *map(slow, ("meta", "float16", "float64"))])
def test_F1_a_pipeline_with_the_fused_step_computes_the_same(world, pixels):
    options = {"plan": engine("captured, tables, fused_draw, skip_query")}
    wanted = use(pipeline(**options), pixels)
    with WORLDS[world]():
        assert same(use(pipeline(**options), pixels), wanted)


@pytest.mark.parametrize("world", ["bfloat16", slow("float16"), slow("float64")])
@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.op)
def test_F1_an_operation_computes_the_same(world, spec):
    for case in spec.small[:2]:
        wanted = spec.run(*spec.make_inputs(case, torch.device("cpu"), 1))
        with WORLDS[world]():
            assert same(spec.run(*spec.make_inputs(case, torch.device("cpu"), 1)), wanted), case.name


def train_once() -> list[Tensor]:
    """Fresh models, a pass of each stage and losses."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float32) * 2 - 1
    vae, transformer, judge = HQVAE(VAE).train(), HQTransformer(TRANSFORMER).train(), PatchDiscriminator(32)
    output = vae(images)
    loss = F.mse_loss(output.reconstruction, images) + sum(output.commitment)
    loss = loss + hinge_generator_loss(judge(output.reconstruction))
    codes = [level.codes for level in output.levels]
    logits = transformer(codes, torch.tensor([0, 1])).levels[0]
    level = output.levels[0].residual.detach().permute(0, 2, 3, 1).flatten(0, 2)
    soft = ops.soft_label_cross_entropy(logits.flatten(0, 1), level, vae.codebooks[0].embedding, 1.0)
    (loss + soft).backward()
    vae.codebooks[0].update(output.levels[0].residual.detach(), codes[0])
    found = [loss.detach(), soft.detach(), vae.codebooks[0].embedding, *VGG16Trunk()(images)[:1]]
    gradients = [parameter.grad for parameter in (*vae.parameters(), *transformer.parameters())]
    return [*found, *[gradient for gradient in gradients if gradient is not None]]


@pytest.mark.parametrize("world", ["bfloat16", slow("float16"), slow("float64")])
def test_F1_training_computes_the_same(world):
    wanted = train_once()
    with WORLDS[world]():
        assert same(train_once(), wanted)


def test_F1_measuring_computes_the_same():
    features = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    wanted = Moments.of(features) + Moments.none(3)
    with default_dtype(torch.bfloat16):
        got = Moments.of(features) + Moments.none(3)
    assert same([got.mean, got.scatter], [wanted.mean, wanted.scatter])


NAMES = ("zeros", "ones", "empty", "full", "rand", "randn", "linspace", "logspace", "eye", "tensor")
FACTORIES = {f"torch.{name}" for name in NAMES}


def test_F1_every_tensor_made_has_a_dtype():
    """Else it has the one that somebody set: what a kernel then reads or writes is half as large."""
    without = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in FACTORIES and not any(keyword.arg in ("dtype", None) for keyword in node.keywords):
                without.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {name}")
    assert not without, f"expected dtype=...; got none in {without}"


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(6, dtype=torch.bfloat16),
        torch.zeros(5, dtype=torch.float32),
        torch.zeros(3, 4, dtype=torch.float32)[:, ::2],
        torch.zeros(6, dtype=torch.float32, device="meta"),
    ],
    ids=["dtype", "size", "gaps", "device"],
)
def test_F1_a_compiled_kernel_is_given_no_other_buffer(wrong):
    assert cpu_library.buffer(torch.zeros(2, 3, dtype=torch.float32), torch.float32, 6) != 0
    with pytest.raises(ValueError, match="buffer of a compiled kernel: expected 6 values of"):
        cpu_library.buffer(wrong, torch.float32, 6)


# ---------------------------------------------------------------------------------------------------------- autocast


@contextmanager
def autocast(kind: str) -> Iterator[None]:
    """As `torch.autocast` does; "cuda" too where there is none, as a GPU's user has it around work on a CPU."""
    before, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, True)
    torch.set_autocast_dtype(kind, torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, before)
        torch.set_autocast_dtype(kind, dtype)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("text", ["", slow("captured, tables"), slow("overlap=on")])
@pytest.mark.parametrize("kind,dtype", [("cpu", "fp32"), slow("cpu", "bf16"), slow("cuda", "fp32"), ("cuda", "bf16")])
def test_F14_autocast_around_a_pipeline_changes_nothing(kind, dtype, text, pixels):
    options = {"plan": engine(text)}
    pipe = pipeline(dtype=dtype, **options)
    wanted = use(pipe, pixels)
    with autocast(kind):
        assert same(use(pipe, pixels), wanted)
        assert same(use(pipeline(dtype=dtype, **options), pixels), wanted)
        assert torch.is_autocast_enabled(kind)  # still, for the caller's own work


def test_F14_autocast_around_a_pipelines_models_changes_nothing():
    pipe = pipeline()
    codes = pipe(class_labels=[1, 0], progress=False, output_type="codes").codes
    with torch.no_grad():
        wanted = [*pipe.transformer(codes, torch.tensor([1, 0])).levels, pipe.vae.decode_bytes(codes)]
        with autocast("cpu"):
            got = [*pipe.transformer(codes, torch.tensor([1, 0])).levels, pipe.vae.decode_bytes(codes)]
    assert same(got, wanted)


def test_F14_training_is_still_cast():
    transformer = HQTransformer(TRANSFORMER)
    codes = [torch.zeros(1, SIDE, SIDE, dtype=torch.int64), torch.zeros(1, 2 * SIDE, 2 * SIDE, dtype=torch.int64)]
    with autocast("cpu"):
        assert transformer(codes, torch.tensor([1])).levels[0].dtype is torch.bfloat16


# ------------------------------------------------------------------------------------------------------- temperature

ON_A_CPU = [backend.name for backend in DRAWS if backend.name in ("cpu", "reference")]
LOGITS = torch.tensor([[1.0, 2.0, 3.0, 2.99], [-1.0, -2.0, -3.0, -0.99], [300.0, -300.0, 0.0, 299.0]])


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}, {"top_k": 3, "top_p": 0.5}], ids=str)
@pytest.mark.parametrize("backend", ON_A_CPU)
@pytest.mark.parametrize("temperature", [1e-6, 1e-20, COLDEST])
def test_F15_a_temperature_near_0_draws_the_likeliest_code(temperature, backend, filters):
    for seed in range(20):
        place = {"seeds": torch.full((3,), seed), "step": 0, "position": 0}
        drawn = ops.sample_logits(LOGITS, temperature=temperature, backend=backend, **place, **filters)
        assert drawn.tolist() == [2, 3, 0]


@pytest.mark.parametrize("backend", ["unfused", "reference"])
def test_F15_so_does_the_draw_inside_the_heads_product(backend):
    x, place = torch.eye(3, 4), {"seeds": torch.arange(3), "step": 0, "position": 0}
    weight = torch.cat([LOGITS.T, torch.zeros(4, 1)], dim=1)
    assert ops.draw_from_head(x, weight, temperature=COLDEST, backend=backend, **place).tolist() == [2, 3, 0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-38, 1e-45, 1e-300, 1e39, 1e300, float("nan"), float("inf")])
def test_F15_other_temperatures_are_refused_with_the_way_to_have_the_likeliest_code(temperature):
    place = {"seeds": torch.arange(3), "step": 0, "position": 0}
    with pytest.raises(ValueError, match=r"temperature: expected a number from 1e-30 to 1e\+30 \(top_k=1 .*; got"):
        ops.sample_logits(LOGITS, temperature=temperature, **place)
    with pytest.raises(ValueError, match="temperature"):
        ops.draw_from_head(torch.eye(3, 4), torch.eye(4), temperature=temperature, **place)


@pytest.mark.parametrize("text", ["", "fused_draw"])
def test_F15_a_pipeline_draws_the_likeliest_codes(text):
    pipe = pipeline(plan=engine(text))
    how = {"class_labels": [0, 1], "progress": False, "output_type": "codes"}
    assert same(pipe(**how, temperature=COLDEST).codes, pipe(**how, top_k=1).codes)
    assert pipe(**how, temperature=HOTTEST).codes[0].max() < pipe.config.vae.codebook_sizes[0]
    with pytest.raises(ValueError, match="temperature: expected a number from 1e-30"):
        pipe(**how, temperature=1e-40)

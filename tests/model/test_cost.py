"""The published sizes, FLOPs, bytes and roofs come out of the configurations."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hqtvae_fast.config import PRESETS, BlocksConfig, HQTVAEConfig, TransformerConfig, VAEConfig, preset
from hqtvae_fast.engine import SamplingParams, draw_codes
from hqtvae_fast.hardware import DEVICES, Device
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.cost import StepCost, decode_flops, draw_steps, encode_flops, image_cost, memory, parameters
from hqtvae_fast.ops.kernels.decode_attention import reference

A100, H100 = DEVICES["A100-80GB"], DEVICES["H100"]

SMALL_VAE = VAEConfig(
    resolution=32,
    channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    latent_channels=32,
    embed_dim=8,
    codebook_sizes=(24, 40),
)
SMALL = TransformerConfig(
    codebook_sizes=(24, 40),
    side=4,
    dim=32,
    body=BlocksConfig(num_layers=3, num_heads=4),
    head=BlocksConfig(num_layers=2, num_heads=4),
    num_classes=10,
    prefix_vocab_size=24,
    prefix_length=16,
)
PRIOR = dataclasses.replace(SMALL, decoding="global", codebook_sizes=(24,))
REFINER = dataclasses.replace(PRIOR, codebook_sizes=(40,), side=8, condition="codes")
SMALL_TRANSFORMERS = {
    "hierarchical": SMALL,
    "sequential": dataclasses.replace(SMALL, decoding="sequential"),
    "bidirectional": dataclasses.replace(SMALL, decoding="bidirectional"),
    "global": PRIOR,
    "refiner": REFINER,
    "iet": dataclasses.replace(SMALL, iet_layers=1),
    "reduce": dataclasses.replace(SMALL, embedding="reduce", condition="none"),
    "text": dataclasses.replace(SMALL, condition="text"),
    "level3": dataclasses.replace(SMALL, codebook_sizes=(24, 40, 24), position="2d"),
    "no biases": dataclasses.replace(SMALL, body=BlocksConfig(3, 4, attention_bias=False, mlp_bias=False)),
}


def _total(config: HQTVAEConfig, part: str) -> int:
    return sum(count for name, count in parameters(config).items() if name.startswith(f"{part}."))


# ---------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("name,millions", [("S", 530.8), ("M", 870.7), ("L", 1437.4)])
def test_transformer_sizes_are_the_published_ones(name: str, millions: float) -> None:
    assert _total(preset(name), "transformer") / 1e6 == pytest.approx(millions, abs=0.05)


def test_stage_1_sizes_are_the_published_ones() -> None:
    table = parameters(preset("S"))
    assert table["vae.encoder"] / 1e6 == pytest.approx(35.3, abs=0.05)
    assert table["vae.decoder"] / 1e6 == pytest.approx(54.0, abs=0.05)
    assert table["vae.codebooks"] == 8192 * 1024 + 8192 * 256


def test_components_of_s() -> None:
    table = parameters(preset("S"))
    assert table["transformer.body"] / 1e6 == pytest.approx(340, rel=1e-3)
    assert table["transformer.head.blocks"] / 1e6 == pytest.approx(113, rel=5e-3)
    assert table["transformer.head.logits"] == table["transformer.head.codes"] == 2 * 8192 * 1536
    assert table["transformer.embedding.codes"] == 2 * 8192 * 1536
    assert table["transformer.prefix"] == 1000 * 1536


@pytest.mark.parametrize("name", SMALL_TRANSFORMERS)
def test_no_parameter_is_missed(name: str) -> None:
    stage2 = SMALL_TRANSFORMERS[name]
    # The pair of configurations need not fit each other to be counted; a VAE of the right levels is not built here.
    first = stage2 if name != "refiner" else PRIOR
    vae = dataclasses.replace(SMALL_VAE, combine="sum", codebook_sizes=(24, 40, 24), resolution=64)
    config = HQTVAEConfig(vae if name == "level3" else SMALL_VAE, first, REFINER if name == "refiner" else None)
    assert _total(config, "refiner" if name == "refiner" else "transformer") == sum(
        parameter.numel() for parameter in HQTransformer(stage2).parameters()
    )
    with_codebooks = sum(p.numel() for p in HQVAE(config.vae).parameters()) + sum(
        size * dim for size, dim in zip(config.vae.codebook_sizes, config.vae.code_dims, strict=True)
    )
    assert _total(config, "vae") == with_codebooks


# --------------------------------------------------------------------------------------------------------------- FLOPs


def test_stage_1_flops_are_the_published_ones() -> None:
    vae = VAEConfig()
    assert decode_flops(vae) / 1e9 == pytest.approx(177.5, rel=1e-3)
    assert decode_flops(vae, fold_upsampling=True) / 1e9 == pytest.approx(142.6, rel=1e-3)
    assert encode_flops(vae) / 1e9 == pytest.approx(70.6, rel=1e-3)


@pytest.mark.parametrize("resampler", ["pixel_shuffle", "average", "conv"])
@pytest.mark.parametrize("init_downsample", [False, True])
def test_folding_saves_five_ninths_of_upsampling_in_any_vae(resampler: str, init_downsample: bool) -> None:
    vae = dataclasses.replace(SMALL_VAE, resampler=resampler, init_downsample=init_downsample)
    assert 0 < decode_flops(vae, fold_upsampling=True) < decode_flops(vae)
    upsampling = 2 * 9 * 64**2 * 16**2 + 2 * 9 * 32**2 * 32**2 if init_downsample else 2 * 9 * 64**2 * 32**2
    assert decode_flops(vae) - decode_flops(vae, fold_upsampling=True) == upsampling * 20 // 36


def test_drawing_s_is_124_gflop() -> None:
    cost = image_cost(preset("S"))
    assert sum(step.products for step in cost.steps) / 1e9 == pytest.approx(124.0, rel=1e-3)
    attention = sum(step.attention for step in cost.steps)
    # The first position, of the body and of the head, has one key to look at: no product is needed for that.
    assert attention == 4 * 1536 * (12 * sum(range(2, 65)) + 64 * 4 * (4 * 5))
    assert attention < 0.002 * cost.draw


def test_weights_and_cache_read_by_s() -> None:
    cost = image_cost(preset("S"))
    assert all(step.weights == cost.steps[0].weights for step in cost.steps)
    assert cost.steps[0].weights / 1e6 == pytest.approx(591, rel=2e-3)
    assert 2 * cost.weights_read / 1e9 == pytest.approx(75.7, rel=2e-3)
    assert 2 * cost.cache_moved / 1e6 == pytest.approx(153, rel=5e-3)


@pytest.mark.parametrize("decoding,passes", [("hierarchical", 2), ("sequential", 5), ("bidirectional", 1)])
def test_weights_are_read_once_a_pass(decoding: str, passes: int) -> None:
    model = HQTransformer(SMALL_TRANSFORMERS[decoding])
    D, top, bottom = 32, 24, 40
    blocks = sum(p.numel() for p in model.head.blocks.parameters())
    body = sum(p.numel() for p in model.body.parameters()) + 2 * D
    bottom_passes = 4 if decoding == "sequential" else 1
    readouts = D * top + 2 * D + bottom_passes * (D * bottom + 2 * D)
    assert draw_steps(model.config)[3].weights == body + passes * blocks + readouts


@pytest.mark.parametrize("decoding", ["sequential", "bidirectional"])
def test_products_do_not_depend_on_how_positions_are_grouped(decoding: str) -> None:
    hierarchical, other = draw_steps(SMALL), draw_steps(SMALL_TRANSFORMERS[decoding])
    assert [step.products for step in other] == [step.products for step in hierarchical]


def test_global_conditioning_draws_one_code_a_position() -> None:
    D, layer = 32, 12 * 32**2
    steps = draw_steps(PRIOR)
    assert len(steps) == 16
    assert {step.products for step in steps} == {2 * (3 * layer + D * 24)}
    refining = draw_steps(REFINER)
    assert len(refining) == 64
    assert refining[0].products == 2 * (16 * 3 * layer + D * 40)  # the prefix: the whole top map
    assert refining[1].products == 2 * (3 * layer + D * 40)
    assert refining[0].cache == 2 * 3 * D * 16
    assert refining[1].cache == 2 * 3 * D * 17
    cost = image_cost(HQTVAEConfig(SMALL_VAE, PRIOR, REFINER))
    assert cost.steps == steps + refining


def test_iet_costs_from_the_second_step_on() -> None:
    with_iet, without = draw_steps(SMALL_TRANSFORMERS["iet"]), draw_steps(SMALL)
    assert with_iet[0] == without[0]
    extra = with_iet[1].products - without[1].products
    assert extra == 2 * 5 * 12 * 32**2
    assert with_iet[1].attention - without[1].attention == 4 * 32 * 25


def test_a_text_prefix_is_taken_in_the_first_step() -> None:
    text, label = draw_steps(SMALL_TRANSFORMERS["text"]), draw_steps(SMALL)
    assert text[0].products - label[0].products == 2 * 15 * 3 * 12 * 32**2
    assert text[0].weights == label[0].weights
    assert text[5].products == label[5].products
    assert text[5].attention - label[5].attention == 3 * 4 * 32 * 15


def unfilled_attention(config: TransformerConfig) -> int:
    """FLOPs an image of attention over the part of the caches that is still empty, which a CPU reads and masks."""
    capacity = config.prefix_positions + config.num_steps - 1
    body = sum(capacity - config.prefix_positions - step for step in range(1, config.num_steps))
    groups = () if config.decoding == "global" else config.groups
    head = sum(len(group) * (config.num_local - group.stop) for group in groups if group.stop > 1)
    return 4 * config.dim * (config.body.num_layers * body + config.head.num_layers * config.num_steps * head)


@pytest.mark.parametrize("name", SMALL_TRANSFORMERS)
def test_the_sampling_loop_does_what_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product that the loop runs, counted by torch, and those that it could do without."""
    monkeypatch.setattr(reference, "SMALL", 0)  # attention as a large model has it
    config = dataclasses.replace(SMALL_TRANSFORMERS[name], side=2, prefix_length=4)
    model, batch, prefix = HQTransformer(config).eval().requires_grad_(False), 2, config.prefix_length
    conditions = {"none": None, "class": torch.zeros(batch, dtype=torch.int64)}
    condition = conditions.get(config.condition, torch.zeros(batch, prefix, dtype=torch.int64))
    levels = config.num_levels
    params = SamplingParams(temperature=(1.0,) * levels, top_k=(None,) * levels, top_p=(None,) * levels)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        draw_codes(model, condition, torch.arange(batch), params)
    steps = draw_steps(config)
    needless = unfilled_attention(config)
    if config.condition in ("text", "codes"):  # the masked half of the prefix's attention
        needless += config.body.num_layers * 4 * config.dim * prefix * (prefix - 1) // 2
    assert counter.get_total_flops() == batch * (sum(step.flops for step in steps) + needless)


def test_step_costs_add() -> None:
    assert StepCost(1, 2, 3, 4) + StepCost(10, 20, 30, 40) == StepCost(11, 22, 33, 44)
    assert StepCost(1, 2, 3, 4).flops == 3


# -------------------------------------------------------------------------------------------------------------- floors


@pytest.mark.parametrize(
    "name,device,images_per_second",
    [
        ("S", A100, 1035),
        ("M", A100, 904),
        ("L", A100, 699),
        ("S", H100, 3283),
        ("M", H100, 2870),
        ("L", H100, 2217),
    ],
)
def test_roofs_are_the_published_ones(name: str, device: Device, images_per_second: float) -> None:
    assert image_cost(preset(name)).roof(device) == pytest.approx(images_per_second, rel=2e-3)


def test_batch_1_is_bound_by_bandwidth() -> None:
    cost = image_cost(preset("S"))
    a100 = dataclasses.replace(A100, bandwidth=2.0e12)
    assert cost.floor(1, a100).draw == pytest.approx(37.8e-3, rel=5e-3)
    assert cost.floor(1, H100).draw == pytest.approx(22.6e-3, rel=5e-3)
    assert cost.floor(1, H100, torch.float32).draw == pytest.approx(2 * cost.floor(1, H100).draw)


def test_floors_grow_with_the_batch_and_throughput_stays_under_the_roof() -> None:
    cost = image_cost(preset("S"))
    floors = [cost.floor(batch, H100) for batch in (1, 2, 8, 50, 256, 1024)]
    for smaller, larger in itertools.pairwise(floors):
        assert smaller.draw <= larger.draw
        assert smaller.decode < larger.decode
        assert smaller.images_per_second <= larger.images_per_second * (1 + 1e-9)
    assert floors[-1].images_per_second < cost.roof(H100) * (1 + 1e-9)
    assert floors[-1].total == floors[-1].draw + floors[-1].decode


def test_a_faster_device_has_a_lower_floor() -> None:
    cost = image_cost(preset("S"))
    for batch in (1, 50, 512):
        assert cost.floor(batch, H100).total < cost.floor(batch, A100).total
        assert cost.floor(batch, DEVICES["H200"]).total <= cost.floor(batch, H100).total


def test_floors_take_bytes_of_the_device_s_own_dtype() -> None:
    cost = image_cost(preset("S"))
    cpu = Device("toy", flops=1e12, bandwidth=1e10, memory=0, dtype=torch.float32)
    assert cost.floor(1, cpu) == cost.floor(1, cpu, torch.float32)
    assert cost.floor(1, cpu).draw > cost.floor(1, cpu, torch.bfloat16).draw


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_cost(name: str) -> None:
    cost = image_cost(preset(name))
    floor = cost.floor(4, A100)
    assert math.isfinite(floor.images_per_second)
    assert floor.images_per_second > 0
    assert image_cost(preset(name), fold_upsampling=True).roof(A100) > cost.roof(A100)


def test_stage_1_alone() -> None:
    config = HQTVAEConfig(SMALL_VAE, None)
    cost = image_cost(config)
    assert cost.steps == ()
    assert cost.draw == cost.weights_read == cost.cache_moved == 0
    assert cost.floor(2, A100).draw == 0
    assert cost.floor(2, A100).decode > 0
    assert memory(config, 2, torch.bfloat16).cache == memory(config, 2, torch.bfloat16).codes == 0
    assert all(name.startswith("vae.") for name in parameters(config))


# -------------------------------------------------------------------------------------------------------------- memory


def test_memory_of_s() -> None:
    needed = memory(preset("S"), 50, torch.bfloat16)
    body, head = 12 * 64, 4 * 5
    assert needed.cache == 2 * 50 * 1536 * (body + head) * 2
    assert needed.codes == 50 * 64 * 5 * 8
    codebooks = 2 * 8192 * (1024 + 256) + 2 * 8192  # embeddings, their running sums and cluster sizes
    assert needed.weights == pytest.approx(2 * (530.8e6 + 54.0e6) + 4 * (35.3e6 + codebooks), rel=2e-3)
    assert needed.total == needed.weights + needed.cache + needed.codes


def test_memory_grows_with_batch_and_dtype() -> None:
    config = HQTVAEConfig(SMALL_VAE, SMALL)
    one, two = memory(config, 1, torch.bfloat16), memory(config, 2, torch.bfloat16)
    assert (two.weights, two.cache, two.codes) == (one.weights, 2 * one.cache, 2 * one.codes)
    assert memory(config, 1, torch.float32).cache == 2 * one.cache
    assert memory(config, 1, torch.float32).weights > one.weights


def test_the_refiner_s_cache_takes_the_prior_s_place() -> None:
    needed = memory(HQTVAEConfig(SMALL_VAE, PRIOR, REFINER), 2, torch.float32)
    assert needed.cache == 2 * 2 * 32 * 3 * (16 + 64 - 1) * 4
    assert needed.codes == 2 * (16 + 64) * 8

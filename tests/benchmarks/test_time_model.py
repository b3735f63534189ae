"""The model of a GPU's time: that its kernels are those that are launched, and what it says beside a plan."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from benchmarks.model.__main__ import device_of, faster_tiles, lines_of, main, table_of, total
from benchmarks.model.calls import calls_of_decode, decoding
from benchmarks.model.times import GAP, best_variant, predict, with_backend
from hqtvae_fast.config import preset
from hqtvae_fast.engine.batches import decoding_memory, peak_bytes
from hqtvae_fast.engine.options import EngineOptions
from hqtvae_fast.hardware import DEVICES
from hqtvae_fast.plan import site
from hqtvae_fast.plan_file import Measured
from hqtvae_fast.tune.launches import calls_of_step, count_launches

S, H100 = preset("S"), DEVICES["H100"]


@pytest.fixture(scope="module")
def steps():
    return {batch: calls_of_step(S.transformer, "fused", batch=batch) for batch in (1, 50)}


def test_it_predicts_a_batch_from_the_kernels_that_are_launched(capsys):
    main(["--preset", "S", "--device", "h100", "--batch", "1"])
    out = capsys.readouterr().out
    kernels = sum(count_launches(S.transformer, "fused", batch=1).values())
    assert f"\nall {kernels} " in "\n".join(" ".join(line.split()) for line in out.splitlines())
    assert "S, batch 1, NVIDIA H100 80GB HBM3, bf16, predicted: AR " in out


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 50])
def test_nothing_is_predicted_to_be_faster_than_memory(batch, steps):
    for calls in (steps[batch], calls_of_decode(S.vae, batch)):
        for device in (H100, DEVICES["A100-80GB"]):
            for line in lines_of(calls, device, {}):
                assert line.seconds > line.floor, line


def test_8_bits_launch_nothing_more():
    """A map is rounded by the norm before, the sum before an upsampling in one kernel with its two additions, and a
    bias added where sums end. 136.6 of 142.6 GFLOP an image are taken."""
    plain, eight = (calls_of_decode(S.vae, 2, convolutions=how) for how in (None, "triton/int8"))
    before, after = (Counter(call.name for call in calls) for calls in (plain, eight))
    assert (before["conv2d"], before["upsample_conv"], before["add"] + before["add_maps"]) == (31, 4, 6)
    assert before - after == Counter(conv2d=28, upsample_conv=4, add=3, add_maps=3)
    assert after - before == Counter(quantized_conv=32, round_map=4)
    multiplied = [call for call in eight if call.name == "quantized_conv"]
    assert all(call.inputs[0].dtype is torch.int8 and call.inputs[-1] == "triton" for call in multiplied)
    flops = sum(2 * call.output.numel() * math.prod(call.inputs[1].shape[1:]) for call in multiplied)
    assert flops / 2 == pytest.approx(136.6e9, rel=1e-3)
    norms = [call.output[0] for call in eight if call.name == "group_norm_silu"]
    assert sum(y.dtype is torch.int8 for y in norms) == 28
    assert total(lines_of(eight, H100, {})) < total(lines_of(plain, H100, {}))


@pytest.mark.parametrize("convolutions", ["triton/int8", pytest.param("triton/fp8", marks=pytest.mark.slow)])
def test_8_bits_take_no_more_memory_than_is_estimated(convolutions):
    estimated = decoding_memory(S.vae, torch.bfloat16).total(4)
    with decoding(S.vae, 4, torch.bfloat16, convolutions=convolutions) as decode:
        assert 0.5 < peak_bytes(decode) / estimated <= 1


def test_what_the_constants_say(steps):
    """A weight of 14.2 MB at 85 % of 3.35 TB/s, 2.5 us to start and end; 149 gaps of 1.1 us."""
    lines = lines_of(steps[1], H100, {})
    product = next(line for line in lines if line.shape.endswith("4608x1536"))
    assert product.seconds == pytest.approx(7.47e-6, rel=0.01)
    assert product.count == 16
    assert total(lines) - sum(line.total for line in lines) == pytest.approx(149 * GAP)


def test_more_multiprocessors_or_memory_bandwidth_are_never_slower(steps):
    for call in steps[50]:
        assert predict(call, DEVICES["H200"]).seconds <= predict(call, H100).seconds


def test_a_plans_measurement_stands_beside_the_prediction(steps):
    call = next(call for call in steps[1] if call.name == "skinny_linear")
    inputs = call.inputs[:7]  # what the choice is told; the workspace and the backend's name follow
    choices = {site("skinny_linear", inputs): Measured("triton", median=5.0)}
    lines = lines_of(steps[1], H100, choices)
    assert [line.measured for line in lines].count(5e-6) == 1
    columns = [column.header for column in table_of("", lines).columns]
    assert columns[-2:] == ["measured, us each", "error"]
    assert "error" not in [column.header for column in table_of("", lines_of(steps[1], H100, {})).columns]


@pytest.mark.slow
def test_engines_options_change_what_is_launched(steps):
    fewer = calls_of_step(S.transformer, "fused", batch=1, options=EngineOptions.read("tables"))
    assert sum(call.name == "skinny_linear" for call in fewer) == 81
    drawn = calls_of_step(S.transformer, "fused", batch=1, options=EngineOptions.read("fused_draw"))
    assert [call.name for call in drawn].count("draw_from_head") == 2


def test_a_device_is_found_by_the_beginning_of_its_name():
    assert device_of("h100") is H100
    assert device_of("a100") is DEVICES["A100-80GB"]
    with pytest.raises(ValueError, match=r"expected one of A100-40GB, .*; got 'b100'"):
        device_of("b100")


def test_a_decode_reads_and_launches_what_it_should():
    """Before each of four upsamplings one sum and no more (the first follows attention, which leaves no bias); the last
    map is read once, at the memory's pace; and on Hopper no tile should be faster than those that are picked."""
    calls = calls_of_decode(S.vae, 50)
    names = [call.name for call in calls]
    before = [names[index - 1] for index, name in enumerate(names) if name == "upsample_conv"]
    assert before == ["add", "add_maps", "add_maps", "add_maps"]
    assert "add_" not in names
    lines = lines_of(calls, H100, {})
    last = next(line for line in lines if line.name == "conv_bytes")
    assert (last.bound, last.seconds < 1.5 * last.floor) == ("maps", True)
    assert best_variant(with_backend(calls[-1], "triton/128x16x32"), H100)[1] == last.seconds
    assert faster_tiles(lines) == []
    narrow = [with_backend(call, "triton/128x128x32") for call in calls if call.name == "upsample_conv"]
    said = faster_tiles(lines_of(narrow, H100, {}))
    assert len(said) == 1 + 4
    assert all("triton/128x256x64" in each or "triton/256x128x64" in each for each in said[:-1])
    assert said[-1].startswith("with these ")
    assert not any("x64, " in each for each in faster_tiles(lines_of(narrow, DEVICES["A100-80GB"], {})))


def test_a_decode_is_counted_at_its_own_dtype():
    calls = calls_of_decode(S.vae, 2, torch.float32)
    assert all(call.output.dtype == torch.float32 for call in calls if call.name == "conv2d")

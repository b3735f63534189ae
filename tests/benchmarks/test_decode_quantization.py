"""What 8-bit convolutions do to pictures: scales, and the order of the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import golden_pipeline, golden_values
from PIL import Image

from benchmarks.measuring.schema import read
from benchmarks.studies.decode_quantization import ROWS, calibrate, layers, main, measure, with_convolutions
from hqtvae_fast.engine import decode_codes


@pytest.fixture
def vae():
    return golden_pipeline("class_parallel").vae


@pytest.fixture
def codes():
    golden = golden_values("class_parallel")
    return [golden["codes_top"], golden["codes_bottom"]]


@torch.inference_mode()
def test_calibration_is_of_all_pictures_and_every_layer(vae, codes):
    whole = calibrate(vae, codes)
    assert set(whole) == {name for name, _ in layers(vae)}
    halves = [calibrate(vae, [level[part] for level in codes]) for part in (slice(1), slice(1, None))]
    for name, largest in whole.items():
        torch.testing.assert_close(largest, torch.maximum(*(half[name] for half in halves)), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_scales_that_are_too_small_cost_the_picture(vae, codes):
    """The rows are what they say: with the right scales pictures stay, with a tenth of them they do not."""
    exact, largest = decode_codes(vae, codes), calibrate(vae, codes)
    right, wrong = (
        (decode_codes(with_convolutions(vae, "int8", "map", scales), codes) - exact).abs().mean()
        for scales in (largest, {name: value / 10 for name, value in largest.items()})
    )
    assert right < 0.02
    assert wrong > 5 * right


@torch.inference_mode()
def test_bf16_is_closer_than_8_bits(vae):
    images = golden_values("class_parallel")["image"]
    rows = measure(vae, images, images)
    assert [row.entrant for row in rows] == ["fp32, scale: none", *(f"{kind}, scale: {scale}" for kind, scale in ROWS)]
    exact, best, *others = (row.work for row in rows)
    assert exact["psnr"] is None
    assert max(rows[0].runs) == 0
    assert best["psnr"] > 35
    for work in others:
        assert work["lowest_psnr"] <= work["psnr"]
        assert 15 < work["psnr"] < best["psnr"] - 3


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    folder = tmp_path / "pictures" / "some"
    folder.mkdir(parents=True)
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    file = tmp_path / "out.json"
    arguments = ["--data", str(folder.parent), "--calibrate", "1", "--images", "2", "--json", str(file)]
    main(["demo", *arguments])
    rows = read(file).rows
    assert len(rows) == 1 + len(ROWS)
    assert all(len(row.runs) == 2 for row in rows)
    printed = capsys.readouterr().out
    assert all(f"{row.work['psnr']:.2f} dB" in printed for row in rows[1:])
    with pytest.raises(SystemExit, match="expected 39 pictures that can be read; got 3"):
        main(["demo", "--data", str(folder.parent), "--calibrate", "19", "--images", "20"])

"""The decoding benchmark: the plain decoder is the model, and a wrong entrant is not timed."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from conftest import CASES, golden_pipeline, golden_values
from typer.testing import CliRunner

from benchmarks import decode, generate
from benchmarks.plain_decoder import PlainDecoder

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_plain_decoder_is_the_released_one(name):
    vae, golden = golden_pipeline(name).vae, golden_values(name)
    names = ["codes_top", "codes_bottom"] if "codes_top" in golden else ["codes_0", "codes_1", "codes_2"]
    picture = PlainDecoder(vae)([golden[level] for level in names])
    torch.testing.assert_close(picture, golden["recon"], rtol=0, atol=TOLERANCE)


def run(*arguments):
    app = typer.Typer()
    app.command()(generate.generate)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_run_reports_every_entrant(tmp_path):
    file = tmp_path / "decode.json"
    result = run("--decode-only", "--preset", "tiny", "--batch", 3, "--repeats", 2, "--dtype", "fp32", "--json", file)
    assert result.exit_code == 0, result.output
    assert "Decoding 3 images, tiny" in result.output
    document = json.loads(file.read_text())
    ours, one, whole = document["entrants"]
    assert [each["name"] for each in (ours, one, whole)] == [
        *("hqtvae_fast", "plain torch, one image at a time", "plain torch, the batch at once"),
    ]
    assert all(len(each["seconds"]) == 2 and min(each["seconds"]) > 0 for each in (ours, one, whole))
    assert ours["flops_an_image"] < one["flops_an_image"] == whole["flops_an_image"]
    assert (document["batch"], document["model"]) == (3, "tiny")


def test_an_entrant_that_decodes_something_else_is_refused():
    vae = decode._open_vae("tiny", None)
    entrants = decode.make_entrants(vae, torch.device("cpu"), torch.float32)
    codes = decode._random_codes(vae.config, 2, torch.device("cpu"))
    decode.check_alike(entrants, codes)
    right = entrants[0].run
    entrants[0].run = lambda codes: right(codes) + 0.01
    with pytest.raises(RuntimeError, match=r"hqtvae_fast: expected pixels within 0.0001 of plain fp32; off by 0.01"):
        decode.check_alike(entrants, codes)

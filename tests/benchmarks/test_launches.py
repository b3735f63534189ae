"""The table of kernels a step."""

from __future__ import annotations

import re

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.studies.launches import launches


@pytest.mark.slow
def test_table():
    app = typer.Typer()
    app.command()(launches)
    result = CliRunner().invoke(app, ["--preset", "S"])
    assert result.exit_code == 0, result.output
    before, after = map(int, re.search(r"a step +(\d+) +(\d+)", result.output).groups())
    assert after <= 190
    assert before >= after + 50
    assert re.search(r"a block of the body +10 +8 *\n", result.output)
    assert re.search(r"bias_gelu +- +20 *\n", result.output)

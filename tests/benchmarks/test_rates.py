"""What is made of the gate's trial runs; the runs themselves take minutes and stand in benchmarks/results."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks.gate.pairs import Paired
from benchmarks.gate.revisions import commit_of
from benchmarks.measuring import schema
from benchmarks.measuring.environment import HERE
from benchmarks.studies import rates


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Three runs without processes: sides that differ by what is planted, plus a little noise."""

    def measure(sides, plan):
        noise = [0.002, -0.002, 0.001] * 4
        sides_seconds = [
            {
                f"tiny: {part}": [[1 + side.slow + (noise[r] if index else 0)] * 3 for r in range(plan.rounds)]
                for part in ("draw", "decode")
            }
            for index, side in enumerate(sides)
        ]
        return [Paired([sides_seconds[0], seconds]) for seconds in sides_seconds[1:]]

    class Nowhere:
        def __enter__(self):
            return Path("nowhere")

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(rates, "measure", measure)
    monkeypatch.setattr(rates, "checked_out", lambda *_: Nowhere())
    app = Typer()
    app.command()(rates.rates)
    return CliRunner().invoke(app, ["--runs", "3", "--out", str(tmp_path / "rates.json")]), tmp_path / "rates.json"


def test_rates_are_counted_and_kept(measured):
    result, file = measured
    assert result.exit_code == 0, result.output
    assert "| 0% | 3 | 0 | 0% | draw | unchanged 3 |" in result.output
    assert "| 3% | 3 | 3 | 100% | draw | slower 3 | +3." in result.output
    assert result.output.count("| | | | | decode |") == len(rates.PLANTED)
    rows = {row.work["planted"]: row for row in schema.read(file).rows if "decode" in row.name}
    assert schema.read(file).environment["git_revision"] == commit_of("HEAD")[:12]
    assert [row.work["alarms"] for row in rows.values()] == [0, 0, 3, 3]
    assert rows[0.1].median == pytest.approx(0.1, abs=0.01)


def test_the_stored_rates_are_those_that_the_page_states():
    text = (HERE / "studies/gate_rates.md").read_text()
    for file in (HERE / "results").glob("gate-rates-*.json"):
        for row in schema.read(file).rows:
            line = f"| {row.work['planted']:.0%} | {len(row.runs)} | {row.work['alarms']} |"
            assert line in text, line

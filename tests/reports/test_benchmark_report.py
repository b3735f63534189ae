"""``hqtvae bench report``: what stands side by side is of one run, and figures are told plainly."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.gate import verdicts
from benchmarks.measuring import environment, schema
from benchmarks.measuring.environment import HERE
from benchmarks.measuring.figures import of_floor, plain
from benchmarks.measuring.schema import Results, Row
from benchmarks.report import html, plots
from hqtvae_fast import cli, hardware

FACTS = {
    **dict.fromkeys(schema.ENVIRONMENT),
    **{"device": "EPYC", "cpu": "EPYC", "cpus": 2, "threads": 2, "torch": "2.13.0", "python": "3.11.7"},
    **{"load_average": 0.88, "date": "2026-11-24", "command": "bench", "cpu_capability": "AVX2"},
}


def run(ours: float, theirs: float, floor: float | None = None, **facts) -> Results:
    """A run of both, of which drawing takes three quarters; seconds for eight images."""
    rows = []
    for entrant, total, mine in (("hqtvae_fast", ours, True), ("released", theirs, False)):
        for part, share in (("draw", 0.75), ("decode", 0.25), ("total", 1.0)):
            work = {"model": "S", "images": 8, "batch": 8, "part": part, "precision": "float32"}
            if floor is not None:
                work["floor_seconds"] = floor * share
            rows.append(Row(f"S, batch 8: {part}", entrant, ((total * share,),), ours=mine, work=work))
    return Results("generate", {**FACTS, **facts}, tuple(rows))


def test_T5_only_rows_of_one_run_are_side_by_side(monkeypatch):
    """Two machines of one name: ours of the fast one is never beside theirs of the slow one."""
    drawn = []
    monkeypatch.setattr(plots, "_parts", lambda where, results, rows, axes: drawn.append([row.median for row in rows]))
    fast, slow = run(4.0, 16.0, date="2026-11-01"), run(20.0, 40.0, date="2026-11-02")
    pictures = html._pictures([fast, slow])
    assert [sorted(own) for own in pictures] == [
        ["throughput-S-dark.png", "throughput-S-light.png"],
        ["throughput-S-2-dark.png", "throughput-S-2-light.png"],
    ]
    assert drawn == [[3.0, 1.0, 4.0, 12.0, 4.0, 16.0]] * 2 + [[15.0, 5.0, 20.0, 30.0, 10.0, 40.0]] * 2
    page = html.page([fast, slow], pictures)
    first, second = page.split("<h2>")[1:]
    assert (first.count("<img"), second.count("<img")) == (2, 2)  # light and dark
    assert "4.00 times as fast as released" in first
    assert "2.00 times as fast as released" in second


def test_T5_the_ratio_of_the_same_run_leads():
    (line,) = html.headlines(run(4.0, 16.0))
    assert line.startswith("S, batch 8: hqtvae_fast (float32) is 4.00 times as fast as released (float32)")
    assert line.endswith("drawing 4.00, decoding 4.00")
    text = html.markdown([run(4.0, 16.0)])
    assert text.index(line) < text.index("| what |")
    cells = [row for row in text.splitlines() if row.startswith("| S, batch 8: total | released")]
    assert "| 4.00x |" in cells[0]  # though the rows themselves hold no ratio


@pytest.mark.parametrize(
    "value, digits, told",
    [
        *[(31852.56, 4, "31,853"), (1004.2, 4, "1,004"), (372.19, 4, "372.2"), (57.1, 4, "57.1"), (0.25, 4, "0.25")],
        *[(1.886e-6, 4, "0.000001886"), (0.0, 4, "0"), (1979.4, 3, "1,979"), (1.25e9, 4, "1,250,000,000")],
    ],
)
def test_T5_numbers_are_plain(value, digits, told):
    assert plain(value, digits) == told


def test_T5_no_share_is_above_its_whole():
    assert of_floor(1.0, 2.0) == "50.0%"
    assert of_floor(2.34, 1.0) == "no floor ‡"
    text = html.markdown([run(4.0, 16.0, floor=9.36)])
    assert "234" not in text
    assert "| no floor ‡ |" in text
    assert "measured on a busy machine (load 0.88)" in text
    assert "others kept 0.70 CPUs busy" in html.markdown([run(4.0, 16.0, floor=9.0, peaks_busy_elsewhere=0.7)])
    assert "‡" not in html.markdown([run(4.0, 16.0, floor=3.0)])


def test_T5_the_load_beside_which_peaks_are_measured_is_kept(monkeypatch):
    seconds = iter([10.0, 10.0])
    monkeypatch.setattr(environment, "peaks_of", lambda device: "peaks")
    monkeypatch.setattr(environment, "cpu_seconds_elsewhere", lambda: next(seconds))
    assert environment.peaks_and_load(torch.device("cpu")) == ("peaks", {"peaks_busy_elsewhere": 0.0})
    monkeypatch.setattr(environment, "cpu_seconds_elsewhere", lambda: None)
    assert environment.peaks_and_load(torch.device("cpu"))[1] == {"peaks_busy_elsewhere": None}


def test_T5_processors_of_one_name_are_told_apart(monkeypatch, tmp_path):
    found = {"_is_avx512_bf16_supported", "_is_vnni_supported", "_is_avx512_supported", "_is_avx2_supported"}
    monkeypatch.setattr(hardware, "_has_instructions", lambda probe: probe in found)
    facts = environment.describe(torch.device("cpu"))
    assert facts["cpu_features"] == ["AVX512-BF16", "AVX512-VNNI", "AVX512", "AVX2"]
    assert facts["memory"] > 2**28
    new, old = run(4.0, 16.0, cpu_features=facts["cpu_features"], memory=24 * 2**30), run(4.0, 16.0)
    assert (new.machine, old.machine) == ("EPYC (AVX512-BF16)", "EPYC (AVX2)")
    assert "EPYC (AVX512-BF16), 24 GiB" in html.caption(new)
    schema.write(old, tmp_path / "old.json")
    with pytest.raises(verdicts.CannotCompare, match=r"expected results of generate on EPYC \(AVX512-BF16\)"):
        verdicts.stored_baseline(tmp_path, new)


def test_T5_the_committed_files_report_plainly(tmp_path, capsys):
    files = [str(HERE / "results" / f"cpu-amd-epyc{end}.json") for end in ("-2", "-avx2-3")]
    assert cli.main(["bench", "report", *files, "--out", str(tmp_path)]) == 0
    assert "4 pictures from 2 files" in capsys.readouterr().out
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "4.63 times as fast as released" in text
    assert "2.10 times as fast as released" in text
    assert not re.search(r"\de[+-]\d", text)
    assert not re.search(r"\d{3}(\.\d+)?%", text)

"""``hqtvae bench report``: pictures, tables and the page, from results made up for it."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.measuring import schema
from benchmarks.measuring.environment import HERE, describe
from benchmarks.measuring.schema import Results, Row
from benchmarks.report import html, plots
from hqtvae_fast import cli
from hqtvae_fast.pictures.plots import THEMES, draw

FACTS = describe(torch.device("cpu"), "ops")
PEAKS = {"name": "abacus", "flops": 1e12, "bandwidth": 1e11, "dtype": "float32"}


def op_row(case, entrant, seconds, ratio, **changes):
    work = {"op": "double", "case": case, "flops": 1e6, "bytes": 1e6, "floor_seconds": 1e-5}
    work["times_longer_than_ours"] = ratio
    return Row(f"double, {case}", entrant, ((seconds, seconds * 1.1),), ours=ratio == 1, work=work, **changes)


def ops():
    rows = (
        op_row("large", "ours: triton", 2e-5, 1.0, unfit="too warm"),
        op_row("large", "<torch>", 6e-5, 3.0),
        op_row("small", "ours: triton", 2e-5, 1.0),
        op_row("small", "cuBLAS", 1e-5, 0.5),
    )
    return Results("ops", FACTS, rows, {"peaks": PEAKS, "measured_peaks": {**PEAKS, "flops": 7e11}})


def generate():
    rows = [
        Row(f"tiny, batch {b}: total", "hqtvae_fast", ((b / (10 * b), b / (9 * b)),), work=_images(b)) for b in (1, 8)
    ]
    return Results("generate", FACTS, tuple(rows))


def _images(batch):
    return {"model": "tiny", "images": batch, "batch": batch, "part": "total", "precision": "float32"}


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_pictures_are_drawn_in_both_themes(theme):
    bars, size = plots.bars(ops())
    for plot, wanted in (
        (plots.throughput(generate())["tiny"], plots.SIZE),
        (plots.roofline(ops()), plots.WIDE),
        (bars, size),
    ):
        data = draw(lambda axes, plot=plot: plot(axes[0]), wanted, theme=theme)
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        corner = picture.getpixel((0, 0))
        assert "#{:02x}{:02x}{:02x}".format(*corner) == theme.page
        assert np.ptp(np.asarray(picture)) > 100  # something is drawn on it


def test_no_picture_without_its_rows():
    assert plots.throughput(ops()) == {}
    assert plots.roofline(generate()) is None
    assert plots.bars(generate()) is None


def test_rows_that_lose_come_first_and_the_unfit_are_marked():
    text = html.markdown([ops()])
    rows = [line for line in text.splitlines() if line.startswith("| double")]
    assert rows[0].startswith("| double, small | cuBLAS | 0.0105 |")
    assert "**0.50x**" in rows[0]
    assert rows[1].startswith("| double, large † |")
    assert "† unfit to quote: too warm." in text
    assert FACTS["git_revision"] in text


def test_reasons_that_differ_in_figures_are_one():
    rows = [op_row(f"{n}", "ours", 1.0, 1.0, unfit=f"others kept {n}.5 CPUs busy") for n in range(3)]
    rows.append(op_row("x", "ours", 1.0, 1.0, unfit="throttled"))
    assert html.unfit(Results("ops", FACTS, tuple(rows))) == [
        "others kept 0.5 CPUs busy (and so in 3 rows)",
        "throttled",
    ]


def test_energy_and_floor_are_told_where_they_were_measured():
    images, name = {**_images(8), "floor_seconds": 0.25, "joules": 2.0}, "tiny, batch 8: total"
    rows = (Row(name, "hqtvae_fast", ((1.0,),), work=images), Row(name, "x", ((0.5,),), ours=False, work=images))
    head, (cells, _) = html.table(Results("generate", FACTS, rows))
    told = dict(zip(head, cells, strict=True))
    assert (told["of its floor"], told["images/J"], told["/ ours"]) == ("50.0%", "4", "**0.50x**")
    assert html.table(generate())[1][0][5:8] == ["-", "-", "-"]


def test_the_table_of_whole_images():
    head, rows = html.table(generate())
    assert head[4] == "images/s"
    assert float(rows[0][4]) == pytest.approx(1 / 0.10556, rel=1e-3)


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_loads_nothing_and_escapes_names(tmp_path, capsys):
    files = []
    for name, results in (("ops", ops()), ("generate", generate())):
        schema.write(results, tmp_path / f"{name}.json")
        files.append(str(tmp_path / f"{name}.json"))
    assert cli.main(["bench", "report", *files, "--out", str(tmp_path / "out")]) == 0
    made = {file.name for file in (tmp_path / "out").iterdir()}
    pictures = {f"{what}-{theme}.png" for what in ("throughput-tiny", "roofline", "ops") for theme in ("light", "dark")}
    assert made == pictures | {"index.html", "table.md"}
    source = (tmp_path / "out/index.html").read_text()
    page = Page()
    page.feed(source)
    assert len(page.sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "url(" not in source
    assert not re.search(r"<(script|link)\b", source)
    assert "<torch>" in page.text
    assert "6 pictures from 2 files" in capsys.readouterr().out


def test_the_stored_results_can_be_reported():
    every = [schema.read(file) for file in sorted((HERE / "results").glob("*.json"))]
    assert "S, batch 8: total" in html.markdown(every)

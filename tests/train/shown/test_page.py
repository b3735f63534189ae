"""The page of a run: one file that needs nothing else, true while the run goes on and when it is done."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="the 'train' extra is not installed")

from hqtvae_fast.train.shown import report
from hqtvae_fast.train.shown.report import EARLIER, write_report


def write_run(folder: Path, updates: int = 40, sheets: tuple[int, ...] = (20, 40), *, done: bool = False) -> Path:
    (folder / "pictures").mkdir(parents=True)
    record = {"epoch": 2.5, "seconds": 400.0, "images_per_second": 21.4, "mse": 0.1, "loss": 0.2, "psnr": 21.3}
    lines = [{"step": step, **record} for step in range(10, updates + 1, 10)]
    lines[-1] |= {"val_psnr": 19.04, "val_usage_0": 0.83, "val_usage_1": 0.61}
    lines.append({"step": updates, "warning": "the loss rises <fast>"})
    (folder / "losses.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for step in sheets:
        Image.new("RGB", (60, 40), (step, 0, 0)).save(folder / "pictures" / f"{step:07d}.png")
    if done:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def no_curves(monkeypatch):
    """Which take longer than all else."""
    monkeypatch.setattr(report, "losses_plot", lambda runs, kind: b"<svg></svg>")


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_one_file_needs_nothing_else(tmp_path):
    runs = {"stage 1": write_run(tmp_path / "stage1", done=True), "stage 2": write_run(tmp_path / "stage2")}
    file = write_report(tmp_path, runs, {"pictures": "60 <of mine>", "classes": "food (20), cat (40)"})
    assert file == tmp_path / "report.html"
    page = Page(file)
    assert page.open == []
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "url(" not in file.read_text().replace("url(#", "")
    assert sum(link.startswith("data:image/") for link in page.links) == 4
    assert file.read_text().count("<svg") == 1
    assert "60 <of mine>" in page.text
    assert "prefers-color-scheme: dark" in file.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"stage1", "stage2", "report.html"}


def test_figures_warnings_and_state_are_told_in_words(tmp_path, no_curves):
    write_report(tmp_path, {"stage 1": write_run(tmp_path / "stage1")}, {})
    text = Page(tmp_path / "report.html").text
    assert "update 40, 2.5 epochs, 7 minutes of training, 21 images/s" in text
    assert "training loss 0.2, PSNR 21.3 dB" in text
    assert "held out PSNR 19.0 dB, codes in use: 83% top, 61% bottom" in text
    assert "the loss rises <fast>" in text
    assert "val_" not in text


def test_the_page_is_loaded_anew_while_the_run_goes_on(tmp_path, no_curves):
    run = write_run(tmp_path / "run")
    write_report(run, {"stage 1": run}, {})
    assert 'http-equiv="refresh"' in (run / "report.html").read_text()
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    write_report(run, {"stage 1": run}, {})
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text()
    assert "finished" in Page(run / "report.html").text


def test_losses_that_were_written_again_are_drawn_again(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "losses_plot", lambda runs, kind: drawn.append(1) or b"<svg></svg>")
    losses = write_run(tmp_path / "run", done=True) / "losses.jsonl"
    for text in [losses.read_text()] * 2 + [losses.read_text().replace("0.2", "0.3")]:
        if text != losses.read_text():  # as many bytes, later
            losses.write_text(text)
            os.utime(losses, ns=(0, losses.stat().st_mtime_ns + 1))
        write_report(tmp_path, {"stage 1": tmp_path / "run"}, {})
    assert len(drawn) == 2


def test_of_many_pictures_the_last_and_some_earlier_ones_are_shown(tmp_path, no_curves):
    run = write_run(tmp_path / "run", sheets=tuple(range(10, 201, 10)))
    write_report(run, {"stage 1": run}, {})
    links = [link for link in Page(run / "report.html").links if link.startswith("data:")]
    reds = [Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).getpixel((5, 5))[0] for link in links]
    assert len(reds) == 1 + EARLIER
    assert abs(reds[0] - 200) < 4
    assert reds[1:] == sorted(reds[1:])
    assert abs(reds[1] - 10) < 4


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "stage1").mkdir()
    write_report(tmp_path, {"stage 1": tmp_path / "stage1", "stage 2": tmp_path / "stage2"}, {})
    assert "has not begun" in Page(tmp_path / "report.html").text


def test_without_matplotlib_the_page_has_no_curves(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(tmp_path, {"stage 1": write_run(tmp_path / "stage1")}, {})
    text = Page(tmp_path / "report.html").text
    assert "needs matplotlib" in text
    assert re.search("held out PSNR", text)


def test_a_run_that_has_just_begun_has_no_curves_yet(tmp_path, no_curves):
    run = write_run(tmp_path / "run")
    record = (run / "losses.jsonl").read_text().splitlines()[0] + "\n"
    for count, curves in ((1, False), (report.FEWEST_LOGGED, True)):
        (run / "losses.jsonl").write_text(record * count)
        write_report(run, {"stage 1": run}, {})
        assert ("<svg>" in (run / "report.html").read_text()) == curves
    (run / "losses.jsonl").write_text(record)
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    write_report(run, {"stage 1": run}, {})
    assert "<svg>" in (run / "report.html").read_text()

"""Losses of runs as curves: what is read, and what is drawn of it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="the 'train' extra is not installed")

from hqtvae_fast.train.shown import curves
from hqtvae_fast.train.shown.curves import losses_plot, named_runs, read_curves, thinned


def write_run(folder: Path, stage: int = 1, updates: int = 200, rate: float = 1e-3, levels: int = 2) -> Path:
    """A run's losses, logged every 10 updates and validated every 50."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(10, updates + 1, 10):
        left = math.exp(-step / 100)
        usage = {f"usage_{level}": 0.5 + step / 1000 for level in range(levels)}
        record = {"step": step, "epoch": step / 7, "learning_rate": rate * (1 - step / updates)}
        own = {"mse": left / 10, "psnr": 25 - 10 * left, **usage} if stage == 1 else {"level_0": 5 * left + 1}
        if stage == 2:
            own["level_1"] = 6 * left + 1
        record |= {"loss": left + 0.1, **own}
        if step % 50 == 0:
            record |= {f"val_{name}": value * 1.1 for name, value in own.items() if name != "loss"}
            record |= {"val_loss": left + 0.2} if stage == 2 else {}
        lines.append(json.dumps(record))
    (folder / "losses.jsonl").write_text("\n".join([*lines, '{"step": 999, "lo']) + "\n")
    return folder


def titles(run_groups) -> list[list[str]]:
    return [[panel.title for panel in group.panels] for group in run_groups]


def test_a_joint_run_gives_both_stages(tmp_path):
    whole = tmp_path / "mine"
    write_run(whole / "stage1")
    write_run(whole / "stage2", stage=2)
    assert named_runs([str(whole)]) == {"mine, stage 1": whole / "stage1", "mine, stage 2": whole / "stage2"}
    single = write_run(tmp_path / "other")
    assert list(named_runs([str(single), f"slow={whole / 'stage1'}"])) == ["other", "slow"]
    assert len(named_runs([str(single), str(single / ".")])) == 1
    with pytest.raises(ValueError, match=r"nowhere: expected the folder of a run, with losses.jsonl; found none"):
        named_runs([str(tmp_path / "nowhere")])


def test_runs_of_one_name_are_told_apart(tmp_path):
    one, two = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")
    assert list(named_runs([str(one), str(two)])) == ["a/run", "b/run"]


def test_a_run_that_has_logged_nothing_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "losses.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"losses.jsonl: expected losses of at least one update; got none"):
        losses_plot(named_runs([str(tmp_path / "run")]))


def test_stages_have_rows_of_their_own(tmp_path):
    write_run(tmp_path / "mine" / "stage1")
    write_run(tmp_path / "mine" / "stage2", stage=2)
    first, second = read_curves(named_runs([str(tmp_path / "mine")]))
    assert [panel.title for panel in first.panels] == [
        "loss",
        "squared error of pixels",
        "PSNR, dB",
        "codes in use",
        "learning rate",
    ]
    assert [panel.title for panel in second.panels] == ["loss", "nats a code", "learning rate"]


def test_a_panel_has_training_and_held_out_figures_of_every_run(tmp_path):
    runs = {"fast": write_run(tmp_path / "a", rate=1e-2), "slow": write_run(tmp_path / "b", updates=100)}
    (group,) = read_curves(runs)
    panel = next(panel for panel in group.panels if panel.title == "codes in use")
    assert [(line.run, line.what, line.held_out) for line in panel.lines] == [
        (run, level, held) for run in runs for level in ("top", "bottom") for held in (False, True)
    ]
    assert panel.lines[1].steps == [50, 100, 150, 200]
    assert panel.lines[0].steps == list(range(10, 201, 10))
    assert panel.lines[0].values[0] == pytest.approx(0.51)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_curves_are_drawn(tmp_path, kind):
    write_run(tmp_path / "mine" / "stage1", levels=3)
    write_run(tmp_path / "mine" / "stage2", stage=2)
    data = losses_plot(named_runs([str(tmp_path / "mine")]), kind=kind)
    if kind == "svg":
        assert b"<svg" in data
    else:
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG"


def test_many_updates_are_thinned_to_means_within_their_range():
    steps, values = list(range(100_000)), [float(step % 2) for step in range(100_000)]
    at, mean, low, high = thinned(steps, values)
    assert len(at) <= curves.POINTS
    assert at[-1] == steps[-1]
    assert all(value == pytest.approx(0.5, abs=0.01) for value in mean)
    assert (min(low), max(high)) == (0.0, 1.0)
    few = thinned([1, 2], [3.0, 4.0])
    assert few == ([1, 2], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0])


def test_the_command_draws_runs(tmp_path, capsys):
    from hqtvae_fast.cli import main

    run, out = write_run(tmp_path / "run"), tmp_path / "losses.webp"
    assert main(["figure", "losses", str(run), f"again={write_run(tmp_path / 'again')}", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    with Image.open(out) as image:
        assert image.format == "WEBP"
    assert main(["figure", "losses", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err

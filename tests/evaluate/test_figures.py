"""Figures show what they say: cells are the decoded pictures, neighbours the nearest ones, points the figures given."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.config import MAX_LEVELS, level_names
from hqtvae_fast.evaluate import Extractor, open_pictures
from hqtvae_fast.evaluate.figures.levels import level_rows, redraw_rows, resampling_rows
from hqtvae_fast.evaluate.figures.neighbours import feature_distance, nearest, ordinal, pixel_distance
from hqtvae_fast.evaluate.figures.plots import read_point, speed_plot, usage_plot
from hqtvae_fast.pictures.images import enlarge
from hqtvae_fast.pictures.sheet import GREEN, RED, Cell, Row, Sheet

from .conftest import make_pixels, write_folder

CASE = Path(__file__).parents[1] / "golden" / "class_parallel"


def has(sheet: Image.Image, picture: Image.Image, edge: int = 0) -> bool:
    """Whether the sheet shows a picture, but for ``edge`` pixels around it, where a frame may lie."""
    small = np.asarray(picture)[edge : picture.height - edge, edge : picture.width - edge]
    large, (height, width) = np.asarray(sheet), small.shape[:2]
    room = large[: large.shape[0] - height + 1, : large.shape[1] - width + 1]
    corners = np.argwhere((room == small[0, 0]).all(axis=2))
    return any(np.array_equal(large[y : y + height, x : x + width], small) for y, x in corners)


def test_every_cell_is_on_the_sheet():
    pictures = [Image.fromarray(array) for array in make_pixels(5, side=64)]
    rows = [
        Row("one\nrow", [Cell(pictures[0], "caption"), Cell(pictures[1], frame=RED)]),
        Row("another", [Cell(None), Cell(pictures[2]), Cell(pictures[3], frame=GREEN)], apart=True),
    ]
    sheet = Sheet(rows, ["left", "right", "a heading that is far too long for its column"], frozenset({1})).draw()
    for index in range(4):
        assert has(sheet, enlarge(pictures[index], 2), edge=4), index
    assert not has(sheet, enlarge(pictures[4], 2))
    pixels = np.asarray(sheet).reshape(-1, 3)
    for colour in (RED, GREEN):
        assert (pixels == colour).all(axis=1).sum() > 4 * 100


def test_a_sheet_without_pictures_is_refused():
    with pytest.raises(ValueError, match="expected at least one picture"):
        Sheet([Row("empty", [Cell(None)])])


def test_each_level_is_decoded_alone(class_pipeline: HQTVAEPipeline):
    codes = class_pipeline([1, 2], seed=0, output_type="codes", progress=False).codes
    sheet = level_rows(class_pipeline, codes, ["class 1", "class 2"])
    shown = [class_pipeline.decode(part) for part in ([codes[0], None], [None, codes[1]], codes)]
    for image in (image for images in shown for image in images):
        assert has(sheet, enlarge(image, 2))


def test_redrawing_keeps_the_top_codes(class_pipeline: HQTVAEPipeline):
    codes = class_pipeline([1], seed=0, output_type="codes", progress=False).codes
    sheet = redraw_rows(class_pipeline, codes, {"class_labels": 1, "prompt": None}, {"temperature": 1.0}, 2, seed=7)
    drawn = class_pipeline(
        [1], num_images=2, seed=7, given_top_codes=codes[0], output_type="codes", progress=False
    ).codes
    assert torch.equal(drawn[0], codes[0].expand_as(drawn[0]))
    for image in class_pipeline.decode(drawn) + class_pipeline.decode([None, drawn[1]]):
        assert has(sheet, enlarge(image, 2))
    assert has(sheet, enlarge(class_pipeline.decode([codes[0], None])[0], 2), edge=4)


def test_resampling_shows_every_model(class_pipeline: HQTVAEPipeline):
    images = [Image.fromarray(array) for array in make_pixels(2, side=64)]
    sheet = resampling_rows({"this one": class_pipeline}, images)
    codes = class_pipeline.encode(images)
    for image in [*images, *class_pipeline.decode(codes), *class_pipeline.decode([codes[0], None])]:
        assert has(sheet, enlarge(image, 2))


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_neighbours_are_those_of_a_full_search(tmp_path: Path, extractor: Extractor, kind: str):
    known = make_pixels(40)
    drawn = np.concatenate([known[[7]], make_pixels(4, seed=9)])  # the first is a copy
    pictures = open_pictures(write_folder(tmp_path / "known", known))
    distance = pixel_distance(16) if kind == "pixels" else feature_distance(extractor)
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    found = nearest(images, pictures, distance, 3, batch=7)
    if kind == "pixels":
        apart = ((drawn[:, None].astype(float) - known[None]) ** 2).mean(axis=(2, 3, 4)) ** 0.5
    else:
        one, other = (extractor(torch.from_numpy(a).permute(0, 3, 1, 2)).double().numpy() for a in (drawn, known))
        one, other = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (one, other))
        apart = np.linalg.norm(one[:, None] - other[None], axis=2)
    order = apart.argsort(axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.distances, np.take_along_axis(apart, order, 1), rtol=1e-5, atol=1e-7)
    assert found.indices[0, 0] == 7
    assert found.distances[0, 0] == 0


def test_more_neighbours_than_pictures_are_refused(tmp_path: Path):
    pictures = open_pictures(write_folder(tmp_path / "known", make_pixels(2)))
    with pytest.raises(ValueError, match="expected 1 to 2"):
        nearest(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), pictures, pixel_distance(16), 3)


def test_ordinals():
    assert [ordinal(rank) for rank in range(4)] == ["nearest", "2nd nearest", "3rd nearest", "4th nearest"]


def test_usage_of_codes_is_drawn():
    pytest.importorskip("matplotlib", reason="the 'eval' extra is not installed")
    with Image.open(io.BytesIO(usage_plot([torch.tensor([9, 0, 3, 1]), torch.tensor([1, 1, 1, 1])]))) as image:
        assert image.format == "PNG"
        assert image.width > image.height
    with pytest.raises(ValueError, match="expected codes that were chosen"):
        usage_plot([torch.zeros(4)])


def write_evaluation(file: Path, value: float, name: str = "FID") -> Path:
    metric = {"key": "frechet", "name": name, "value": value, "better": "lower", "of": "9 samples"}
    file.write_text(json.dumps({"schema": 1, "kind": "evaluation", "metrics": {"frechet": metric}}))
    return file


def test_a_point_has_the_speed_of_the_fastest_whole_run(tmp_path: Path):
    quality = write_evaluation(tmp_path / "eval.json", 7.15)

    def row(part: str, seconds: float, ours: bool = True, unfit: str | None = None) -> dict:
        return {"ours": ours, "median": seconds, "work": {"part": part, "images": 8}, "unfit": unfit}

    rows = [
        row("total", 4),
        row("total", 2),
        row("draw", 1),
        row("total", 0.5, ours=False),
        row("total", 0.1, unfit="x"),
    ]
    (tmp_path / "speed.json").write_text(json.dumps({"benchmark": "generate", "rows": rows}))
    point = read_point(f"S={quality},{tmp_path / 'speed.json'}", "frechet")
    assert (point.label, point.speed, point.quality, point.metric) == ("S", 4.0, 7.15, "FID")
    assert read_point(f"S={quality},12.5", "frechet").speed == 12.5


def test_points_are_drawn_in_one_metric(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="the 'eval' extra is not installed")
    points = [read_point(f"a={write_evaluation(tmp_path / 'a.json', 7.0)},12", "frechet")]
    points.append(read_point(f"b={write_evaluation(tmp_path / 'b.json', 9.0)},400", "frechet"))
    with Image.open(io.BytesIO(speed_plot(points))) as image:
        assert image.format == "PNG"
    other = read_point(f"c={write_evaluation(tmp_path / 'c.json', 9.0, 'Fréchet distance, x')},4", "frechet")
    with pytest.raises(ValueError, match="expected points of one metric; got FID, Fréchet distance, x"):
        speed_plot([*points, other])


@pytest.mark.parametrize(
    "text, message",
    [
        ("EVAL,3", "expected LABEL=EVALUATION.json,SPEED"),
        ("a=none.json,3", "none.json: no such file"),
        ("a=EVAL,fast", "expected images/s, above 0"),
        ("a=EVAL,0", "expected images/s, above 0"),
        ("a=EVAL,EVAL", "expected benchmark 'generate'; got None"),
    ],
)
def test_what_is_no_point_is_refused(tmp_path: Path, text: str, message: str):
    evaluation = write_evaluation(tmp_path / "eval.json", 7.0)
    with pytest.raises(ValueError, match=message):
        read_point(text.replace("EVAL", str(evaluation), 1).replace("EVAL", str(evaluation)), "frechet")
    with pytest.raises(ValueError, match="expected a metric recall; it has frechet"):
        read_point(f"a={evaluation},3", "recall")


@pytest.mark.parametrize(
    "arguments",
    [
        ("levels", CASE, "--classes", "1,2"),
        ("redraw", CASE, "--classes", "1", "--image", "FOLDER/00000.png", "--draws", "2"),
        ("resampling", f"a={CASE}", "--image", "FOLDER"),
        ("resampling", f"a={CASE}", "--pictures", "FOLDER", "--count", "2"),
        ("usage", CASE, "--pictures", "FOLDER"),
        ("neighbours", "FOLDER", "--training", "FOLDER", "--nearest", "2"),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_the_commands_write_pngs(run, tmp_path: Path, arguments: tuple):
    folder = write_folder(tmp_path / "set", make_pixels(3, side=64))
    given = [str(argument).replace("FOLDER", str(folder)) for argument in arguments]
    found = run("figure", *given, "--device", "cpu", "--out", tmp_path / "figure.png")
    assert found.code == 0, found.err
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG"
        assert len(set(image.convert("RGB").tobytes())) > 20  # something is drawn


def test_a_jpeg_is_a_jpeg(run, tmp_path: Path):
    folder = write_folder(tmp_path / "set", make_pixels(3))
    for name, kind in (("figure.jpg", "JPEG"), ("figure.png", "PNG")):
        found = run("figure", "neighbours", folder, "--training", folder, "--nearest", "1", "--out", tmp_path / name)
        assert found.code == 0, found.err
        with Image.open(tmp_path / name) as image:
            assert image.format == kind


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("redraw", CASE, "--classes", "1,2"), "expected one class or prompt; got 2"),
        (("resampling", "a", "--image", "x.png"), "expected NAME=CHECKPOINT; got a"),
        (("resampling", f"a={CASE}"), "expected either --image or --pictures"),
        (("levels", CASE, "--prompt", "a"), "class-conditional"),
    ],
)
def test_errors_are_one_line(run, tmp_path: Path, arguments: tuple, message: str):
    found = run("figure", *arguments, "--out", tmp_path / "figure.png")
    assert found.code == 2
    assert message in found.err
    assert not (tmp_path / "figure.png").exists()


def test_every_level_has_a_name_of_its_own():
    assert [level_names(count) for count in (1, 2, 3)] == [("top",), ("top", "bottom"), ("top", "middle", "bottom")]
    for count in range(1, MAX_LEVELS + 1):
        assert len(set(level_names(count))) == count

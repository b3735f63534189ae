"""Imports run one way and in no circle, their picture is true, and nothing on the CPU path needs a GPU's package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import draw_imports
from layers import LAYERS, WITHIN, Import, allowed, box_of, circles, imports, modules, part, place, wrong

FORBIDDEN = ("torchvision", "flash_attn", "xformers", "cupy", "triton")
LATE = "def late():\n    from hqtvae_fast.engine import loop\n"


@pytest.fixture(scope="module")
def found() -> list[Import]:
    return imports()


@pytest.fixture
def planted(tmp_path):
    """Writes a package's files, given as text by name (``ops__a``: ops/a.py), and reads its imports."""

    def write(**files: str) -> list[Import]:
        package = tmp_path / "hqtvae_fast"
        for name, text in files.items():
            file = package / f"{name.replace('__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return imports(package)

    return write


@pytest.mark.parametrize("module", modules())
def test_imports_run_one_way(module, found):
    assert wrong([one for one in found if one.source == module]) == []


def test_no_module_imports_itself_by_way_of_others(found):
    assert len(found) > 1000  # they were read
    assert circles(found) == []


def test_each_module_has_its_place():
    listed = [name for layer in LAYERS for box in layer for name in box.modules]
    assert sorted(listed) == sorted({part(name) for name in modules()})


@pytest.mark.parametrize("package", WITHIN)
def test_each_module_of_a_package_has_its_place_too(package):
    within = {place(name) for name in modules() if part(name) == package} - {"__init__"}
    assert sorted(WITHIN[package]) == sorted(within)


def test_the_check_sees_a_wrong_import(planted):
    found = planted(model="from hqtvae_fast.pipeline import HQTVAEPipeline\nfrom hqtvae_fast import ops\n", ops="")
    assert {part(one.target) for one in found} == {"pipeline", "ops"}
    (line,) = wrong(found)
    assert line.startswith("hqtvae_fast.model:1 imports hqtvae_fast.pipeline")
    assert allowed("pipeline", "model")


@pytest.mark.parametrize("text", [LATE, "import hqtvae_fast.engine\n"])
def test_the_check_sees_late_imports_and_those_of_a_whole_package(planted, text):
    (line,) = wrong(planted(ops=text, engine=""))
    assert "hqtvae_fast.ops" in line
    assert "hqtvae_fast.engine" in line


def test_the_check_sees_neighbours_that_import_each_other(planted):
    assert box_of("train") != box_of("pipeline")
    assert len(wrong(planted(train="import hqtvae_fast.pipeline\n", pipeline="import hqtvae_fast.train\n"))) == 2
    assert allowed("checkpoint", "released")  # in one box its order decides
    assert not allowed("released", "checkpoint")


def test_the_check_sees_a_wrong_import_within_a_package(planted):
    (line,) = wrong(
        planted(
            train__data__loader="from hqtvae_fast.train.loop.stopping import Signals\n",
            train__loop__stopping="from hqtvae_fast.train.words import duration\n",
            train__words="",
        )
    )
    assert line.startswith("hqtvae_fast.train.data.loader:1 imports hqtvae_fast.train.loop.stopping")


def test_the_check_sees_a_circle(planted):
    found = planted(
        ops__a="from hqtvae_fast.ops.b import c\n",
        ops__b="import hqtvae_fast.ops.d\n",
        ops__d="def late():\n    from hqtvae_fast.ops import a\n",
    )
    assert wrong(found) == []
    (line,) = circles(found)
    assert line == "a circle: hqtvae_fast.ops.a -> hqtvae_fast.ops.b -> hqtvae_fast.ops.d -> hqtvae_fast.ops.a"


def test_relative_imports_are_refused(planted):
    with pytest.raises(ValueError, match="expected absolute imports"):
        planted(ops="from . import model\n")


def test_the_picture_of_the_imports_is_true(found):
    assert draw_imports.picture(found) == draw_imports.OUT.read_text(encoding="utf-8"), (
        "python tools/draw_imports.py draws it anew"
    )


def test_nothing_is_drawn_where_an_import_runs_upwards(planted, monkeypatch, tmp_path):
    found = planted(ops="from hqtvae_fast import engine\n", engine="")
    monkeypatch.setattr(draw_imports, "imports", lambda: found)
    monkeypatch.setattr(draw_imports, "OUT", tmp_path / "imports.svg")
    with pytest.raises(SystemExit, match=r"hqtvae_fast\.ops:1 imports hqtvae_fast\.engine"):
        draw_imports.main()
    assert not (tmp_path / "imports.svg").exists()


def test_importing_everything_needs_no_gpu_package():
    # Launchers import the files of kernels when they launch.
    names = [name for name, file in modules().items() if file.name not in ("triton_kernels.py", "__main__.py")]
    code = (
        "import sys, importlib\n"
        f"for name in {FORBIDDEN!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_engine_is_read_in_an_hour():
    assert sum(module.startswith("hqtvae_fast.engine") for module in modules()) <= 12

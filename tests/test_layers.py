"""Imports run one way, and nothing on the CPU path needs a package that is for GPUs."""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hqtvae_fast"
FORBIDDEN = ("torchvision", "flash_attn", "xformers", "cupy", "triton")


TOOL = PACKAGE.parent / "tools" / "draw_imports.py"
_spec = importlib.util.spec_from_file_location("draw_imports", TOOL)
draw_imports = importlib.util.module_from_spec(_spec)
sys.modules["draw_imports"] = draw_imports  # its dataclass asks for it
_spec.loader.exec_module(draw_imports)
KNOWN = draw_imports.modules()
FILES = sorted(KNOWN.values())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    of = next(name for name, place in KNOWN.items() if place == file)
    assert draw_imports.upward(list(draw_imports.imports(file, of, KNOWN))) == []


def test_no_module_imports_itself_by_way_of_others():
    assert draw_imports.circle(draw_imports.all_imports()) == []


def test_the_check_sees_a_wrong_import(tmp_path):
    file = tmp_path / "layers.py"
    file.write_text("from hqtvae_fast.pipeline import HQTVAEPipeline\nfrom hqtvae_fast import ops\n")
    found = list(draw_imports.imports(file, "model.layers", KNOWN))
    assert [one.what for one in found] == ["pipeline", "ops"]
    assert draw_imports.upward(found) == ["model.layers imports pipeline, which stands above it"]


def test_the_check_sees_a_circle(tmp_path):
    one, late = draw_imports.Import, draw_imports.Import("ops", "model", late=True)
    assert draw_imports.circle([one("model", "ops"), late]) == []
    assert draw_imports.circle([one("a", "b"), one("b", "c"), one("c", "b")]) == ["b", "c", "b"]


def test_the_picture_of_the_imports_is_true():
    drawn = re.search(r"<dc:title>(.*?)</dc:title>", draw_imports.PICTURE.read_text(), re.DOTALL)[1]
    counts = draw_imports.edges(draw_imports.all_imports())
    assert html.unescape(drawn) == draw_imports.description(counts), "python tools/draw_imports.py draws it anew"


def test_importing_everything_needs_no_gpu_package():
    files = [file for file in FILES if file.name != "triton_kernels.py"]  # launchers import those when they launch
    modules = [".".join(("hqtvae_fast", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in files]
    names = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    code = (
        "import sys, importlib\n"
        f"for name in {FORBIDDEN!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

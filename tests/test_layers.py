"""Imports run one way, and nothing on the CPU path needs a package that is for GPUs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hqtvae_fast"
LAYERS = [  # a module may import from its own layer and those above it in this list
    {
        "arguments",
        "classes",
        "codes",
        "config",
        "fields",
        "files",
        "modes",
        "pictures",
        "threads",
        "world",
        "hardware",
        "backend",
        "_cuda",
        "_nvrtc",
    },
    {"ops"},
    {"model"},
    {"engine", "released"},
    {"run_folder"},
    {"checkpoint_config"},
    {"checkpoint"},
    {
        "text",
        "progress",
        "output",
        "request",
        "tuning",
        "hub",
        "pipeline",
        "compat",
        "__init__",
    },
    {"train", "distributed"},
    {"evaluate"},
    {"cli"},
]
FORBIDDEN = ("torchvision", "flash_attn", "xformers", "cupy", "triton")


def part(module: str) -> str:
    """``hqtvae_fast.model.layers`` -> ``model``; the package itself -> ``__init__``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def rank(name: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hqtvae_fast"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {part(name if node.module == "hqtvae_fast" else node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {part(alias.name) for alias in node.names if alias.name.startswith("hqtvae_fast")}
    known = set().union(*LAYERS)
    return {name if name in known else "__init__" for name in found}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imports(file):
        assert rank(other) <= rank(own), f"{own} imports {other}, which stands above it"


def test_the_check_sees_a_wrong_import(tmp_path):
    file = tmp_path / "layers.py"
    file.write_text("from hqtvae_fast.pipeline import HQTVAEPipeline\nfrom hqtvae_fast import ops\n")
    assert imports(file) == {"pipeline", "ops"}
    assert rank("pipeline") > rank("model")


def test_importing_everything_needs_no_gpu_package():
    files = [file for file in FILES if file.name != "kernels.py"]  # launchers import those when they launch
    modules = [".".join(("hqtvae_fast", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in files]
    names = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    code = (
        "import sys, importlib\n"
        f"for name in {FORBIDDEN!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

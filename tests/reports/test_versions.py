"""Versions of Triton, torch, Python and CUDA side by side: what is asked of each is what each has."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hqtvae_fast import _cuda, _nvrtc
from hqtvae_fast.files import read_text
from hqtvae_fast.ops import aot, aot_budgets, triton_launch
from hqtvae_fast.ops.aot_budgets import BudgetFile, judge
from hqtvae_fast.ops.spec import Variant

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# -------------------------------------------------------------------------------------------- ahead of time


@needs_triton
@pytest.mark.parametrize("arch, gpu", [(80, "sm_80"), (90, "sm_90a")])
def test_V1_the_check_runs_the_ptxas_that_triton_runs(monkeypatch, arch, gpu):
    from triton.backends.nvidia import compiler

    commands = []

    def run(program, *arguments):
        commands.append((program, *arguments))
        return "REG:8 STACK:0 Used 8 registers"

    made = SimpleNamespace(asm={"cubin": b"", "ptx": ""}, metadata=SimpleNamespace(shared=0, num_warps=4))
    monkeypatch.setattr(aot, "_compile", lambda variant, arch: made)
    monkeypatch.setattr(aot, "_run", run)
    monkeypatch.setattr(compiler, "get_ptxas", lambda arch: SimpleNamespace(path=f"ptxas of {arch}"))
    assert aot.compile_variant(Variant("empty", None, {}, {}, (), 4, 1), arch).registers == 8
    (ptxas,) = [command for command in commands if command[0].startswith("ptxas")]
    assert ptxas[0] == f"ptxas of {arch}"
    assert f"--gpu-name={gpu}" in ptxas


def test_V2_a_version_of_triton_has_rows_of_its_own_where_they_differ(tmp_path):
    file, row = tmp_path / "budgets.json", {"registers": 64, "shared": 1024, "needs": ["mma"]}
    every = BudgetFile({"3.7": {"sm_80": {"a": row, "b": row}}})
    every.by_version["3.9"] = {"sm_80": {"a": row, "b": {**row, "registers": 72}}}
    every.write(file)
    assert json.loads(file.read_text())["sm_80"] == {"a": row, "b": {**row, "3.9": {"registers": 72}}}
    again = BudgetFile.read(file)
    assert again == every
    # One version's change leaves what others may take as it was.
    again.by_version["3.7"]["sm_80"]["b"] = {**row, "registers": 80, "shared": 2048}
    again.write(file)
    assert BudgetFile.read(file).by_version["3.9"]["sm_80"]["b"] == {**row, "registers": 72}


def test_V2_with_a_version_that_has_no_rows_only_what_the_hardware_sets_is_asked():
    row = {"registers": 64, "shared": 1024, "needs": ["mma"]}
    unknown = BudgetFile({"3.7": {"sm_80": {"a": row}}}).of("3.11")["sm_80"]["a"]
    took = aot_budgets.Resources(200, 0, 0, 100_000, 4, "mma.sync", "")
    assert judge(took, unknown, 80) == []
    assert len(judge(took, row, 80)) == 2
    spilt = aot_budgets.Resources(200, 8, 8, 200_000, 4, "", "")
    assert [problem.split()[0] for problem in judge(spilt, unknown, 80)] == ["shared:", "stack:", "spills:", "needs"]


def test_V2_every_version_that_is_tested_has_budgets():
    every = BudgetFile.read(aot.BUDGETS).by_version
    assert list(every) == ["3.7", "3.6", "3.9"]
    assert len({frozenset(budgets["sm_90"]) for budgets in every.values()}) == 1  # the same kernels


def test_V2_whether_products_and_sums_are_fused_is_said_at_every_launch():
    """Triton 3.10 no longer fuses them where nothing is said."""
    said = []
    kernel = {(2,): lambda *arguments, **options: said.append((arguments, options))}
    triton_launch.launch(kernel, (2,), 7, num_warps=4)
    triton_launch.launch(kernel, (2,), 7, enable_fp_fusion=False)
    assert said == [((7,), {"enable_fp_fusion": True, "num_warps": 4}), ((7,), {"enable_fp_fusion": False})]
    for file in sorted((ROOT / "hqtvae_fast/ops").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and file.stem != "triton_launch":
                launched = ast.unparse(node.func.value)
                assert "kernel" not in launched, f"{file}: {launched} is launched without triton_launch.launch"


# --------------------------------------------------------------------------------------------------- interpreted


def test_V3_an_interpreter_that_cannot_run_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests/interpreter"))
    from interpreted import why_not

    assert why_not("3.7.1", "2.4.6") is None
    assert why_not("3.6.0", "2.3.5") is None
    assert why_not(None, "2.4.6") == "Triton is not installed"
    assert "takes arrays for numbers, which NumPy 2.4.6 refuses" in why_not("3.6.0", "2.4.6")


# ---------------------------------------------------------------------------------------------------------- CuPy


@pytest.fixture
def cupy(monkeypatch):
    """CuPy of a wheel's name beside a torch of a CUDA version; whether there is a device."""

    def install(wheel: str | None, cuda: str | None, device: bool = True) -> str:
        monkeypatch.setattr(_nvrtc.importlib.util, "find_spec", lambda name: SimpleNamespace())
        monkeypatch.setattr(_nvrtc, "_cupy_wheel", lambda: wheel)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
        monkeypatch.setenv(_cuda.VARIABLE, "cupy")
        _cuda.load.cache_clear()
        return _cuda.origin()

    yield install
    _cuda.load.cache_clear()


def test_V7_cupy_without_a_driver_is_no_origin(cupy):
    assert cupy("cupy-cuda13x", "13.0", device=False).startswith("none (CuPy: expected a CUDA device and its driver")
    assert cupy("cupy-cuda13x", None, device=False).startswith("none (CuPy: expected a CUDA build of torch beside it")
    assert cupy("cupy-cuda13x", "13.2") == "CuPy, compiled on first use"
    assert cupy(None, "13.2") == "CuPy, compiled on first use"  # built here, for whatever is here


def test_V7_cupy_of_another_cuda_than_torch_is_refused(cupy):
    refused = "none (CuPy: expected cupy-cuda13x beside torch's CUDA 13.0; got cupy-cuda12x)"
    assert cupy("cupy-cuda12x", "13.0") == refused
    assert cupy("cupy-cuda12x", "12.9") == "CuPy, compiled on first use"


def test_V7_the_wheel_is_found_by_what_it_installed(monkeypatch):
    found = {"cupy": ["cupy-cuda12x"], "numpy": ["numpy"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: found)
    assert _nvrtc._cupy_wheel() == "cupy-cuda12x"
    found["cupy"] = ["cupy"]
    assert _nvrtc._cupy_wheel() is None


# -------------------------------------------------------------------------------------------------- Python, torch


def python_versions() -> list[str]:
    """That pyproject.toml says work."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', read_text(ROOT / "pyproject.toml"))


def pins() -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in read_text(ROOT / "constraints.txt").splitlines())
    return [Requirement(line) for line in lines if line]


def test_V5_a_pin_holds_for_each_python_that_its_release_takes():
    """Of the releases that are installed here; one that a Python has no release for has a marker."""
    checked = 0
    for pin in pins():
        try:
            metadata = importlib.metadata.metadata(pin.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not pin.specifier.contains(metadata["Version"], prereleases=True):
            continue
        checked += 1
        takes = SpecifierSet(metadata["Requires-Python"] or "")
        for version in python_versions():
            asked = pin.marker is None or pin.marker.evaluate({"python_version": version})
            assert not asked or takes.contains(f"{version}.0"), f"{pin}: expected Python {takes}; got {version}"
    assert checked > 5


def test_V5_what_is_said_to_work_is_tested():
    """The oldest, the newest and one between in every push, all of them each night."""
    found = {}
    for name in ("ci", "nightly"):
        workflow = yaml.safe_load(read_text(ROOT / f".github/workflows/{name}.yml"))
        matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
        rows = matrix.get("include", []) + [{"python": version} for version in matrix.get("python", [])]
        found[name] = {row["python"] for row in rows}
    assert {python_versions()[0], python_versions()[-1]} <= found["ci"] <= set(python_versions())
    assert set(python_versions()) <= found["nightly"]


def test_V5_no_named_tuple_is_generic():
    """Python 3.10 refuses one when its module is imported, and no type checker says so."""
    for file in sorted((ROOT / "hqtvae_fast").rglob("*.py")):
        for node in ast.walk(ast.parse(read_text(file))):
            if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases):
                assert len(node.bases) == 1, f"{file.relative_to(ROOT)}: {node.name}"


def test_V5_make_shows_that_pip_is_at_work():
    assert "-qq" not in read_text(ROOT / "Makefile")


def test_V6_readme_says_how_to_keep_ones_own_torch_and_how_to_take_the_small_one():
    install = read_text(ROOT / "README.md").split("## Install")[1].split("\n## ")[0]
    assert "--no-deps" in install
    assert "TORCH_INDEX" in read_text(ROOT / "README.md").split("## Install")[0]


# -------------------------------------------------------------------------------------------------------- metadata


def test_T13_the_citation_names_the_paper_and_this_software():
    citation = yaml.safe_load(read_text(ROOT / "CITATION.cff"))
    required = {"cff-version", "message", "title", "authors", "type", "version", "license"}
    assert required <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    version = re.search(r'^version = "(.*)"$', read_text(ROOT / "pyproject.toml"), re.M)
    assert citation["version"] == version[1]
    paper = citation["preferred-citation"]
    assert paper["title"] == "Locally Hierarchical Auto-Regressive Modeling for Image Generation"
    assert [author["family-names"] for author in paper["authors"]] == ["You", "Kim", "Kim", "Lee", "Han"]
    assert paper["title"] in read_text(ROOT / "README.md").replace("\n", " ")


def test_T13_the_changelog_has_this_version_and_the_readme_has_what_a_newcomer_asks():
    assert "## 0.1.0" in read_text(ROOT / "CHANGELOG.md")
    readme = read_text(ROOT / "README.md")
    for asked in ("@inproceedings", "github.com/kakaobrain/hqtransformer", "tokenizer.json", "plain torch"):
        assert asked in readme, asked
    assert "changes one line" not in readme.replace("\n", " ")

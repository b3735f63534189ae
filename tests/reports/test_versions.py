"""Versions of Triton, torch, Python and CUDA side by side: what is asked of each is what each has."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

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

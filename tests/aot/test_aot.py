"""The ahead-of-time check passes a good kernel and catches what it is there to catch: each fault is planted once.

Triton is asked in processes of their own, for in this one it may already have been loaded as an interpreter: run as a
program, this file defines toy kernels and calls the check's ``main`` on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hqtvae_fast.ops import aot
from hqtvae_fast.ops.aot_budgets import BudgetFile, Resources, judge, new_budget, occupancy
from hqtvae_fast.ops.spec import Cost, Spec, Variant, all_specs

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
ROOT = Path(__file__).parents[2]
COMMITTED = aot.BUDGETS  # answers are given with made-up ones in its place
KIB = 2**10
FINE = Resources(96, 0, 0, 32 * KIB, 4, "mma.sync", "cp.async", ("mma", "async"))
BUDGET = {"registers": 96, "shared": 32 * KIB, "needs": ["mma", "async"]}
ROOMY = {"registers": 255, "shared": 1024 * KIB, "needs": []}


# ------------------------------------------------------------------------------------------------- without Triton


def test_judge_passes_what_is_within_its_budget():
    assert judge(FINE, BUDGET, 80) == []
    assert judge(FINE, new_budget(FINE), 90) == []


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"registers": 97}, "registers: 97, budget 96"),
        ({"stack": 8}, "stack: 8, budget 0"),
        ({"spills": 4}, "spills: 4, budget 0"),
        ({"shared": 33 * KIB}, "shared: 33792, budget 32768"),
        ({"shared": 164 * KIB}, "shared: 167936 bytes, sm_80 has 166912 for a block"),
        ({"mma": ""}, "needs mma, which the machine code lacks"),
        ({"copies": "", "needs": ()}, "needs async, which the machine code lacks"),  # the row still asks for it
    ],
)
def test_judge_names_what_is_over(change, problem):
    assert judge(dataclasses.replace(FINE, **change), BUDGET, 80) == [problem]


def test_judge_wants_a_whole_row():
    assert judge(FINE, None, 80) == ["no row in the budgets: --update writes one"]
    assert judge(FINE, {"registers": 96, "needs": []}, 80) == ["the budgets' row lacks shared"]


def test_an_updated_row_waives_neither_stack_nor_spills_nor_needs_nor_the_hardware():
    bad = dataclasses.replace(FINE, registers=250, stack=8, spills=16, shared=228 * KIB, mma="")
    problems = judge(bad, new_budget(bad), 90)
    assert [problem.split()[0] for problem in problems] == ["shared:", "stack:", "spills:", "needs"]


@pytest.mark.parametrize(
    "registers, shared, warps, arch, expected",
    [  # by hand, from the occupancy rules of NVIDIA's guides
        (255, 0, 4, 80, (2, "registers")),  # 8192 a warp: 2 warps a scheduler, 8 in all
        (168, 0, 12, 90, (1, "registers")),  # 5376 a warp: 3 a scheduler, 12 in all
        (96, 32 * KIB, 4, 80, (4, "shared memory")),  # 164 / (32 + 1)
        (32, 227 * KIB, 4, 90, (1, "shared memory")),
        (32, 228 * KIB, 4, 90, (0, "shared memory")),
        (32, 0, 8, 80, (8, "warps")),
        (16, 0, 1, 80, (32, "blocks")),
    ],
)
def test_occupancy(registers, shared, warps, arch, expected):
    resources = dataclasses.replace(FINE, registers=registers, shared=shared, warps=warps)
    assert occupancy(resources, arch) == expected


def test_budgets_keep_through_a_file(tmp_path):
    budgets = {"sm_90": {}, "sm_80": {"b": BUDGET, "a": ROOMY}}
    BudgetFile({"3.7": budgets}).write(tmp_path / "budgets.json")
    assert BudgetFile.read(tmp_path / "budgets.json").by_version == {"3.7": budgets}
    assert len((tmp_path / "budgets.json").read_text().splitlines()) == 8  # a row a line


def test_the_interpreter_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert aot.main([]) == 1
    assert capsys.readouterr().err.startswith("TRITON_INTERPRET is set")


def test_without_triton_it_says_so(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert aot.main([]) == 1
    assert capsys.readouterr().err.startswith("Triton is not installed")


# ---------------------------------------------------------------------------------------------------- with Triton

REQUESTS = {  # of one process: what it is to compile, the arguments, and the budgets that it meets
    "good": {"variants": ["good"], "arguments": [], "rows": {"good": ROOMY}},
    "spills": {"variants": ["spills"], "arguments": ["--arch", "sm_80"], "rows": {"spills": ROOMY}},
    "oversized": {"variants": ["oversized"], "arguments": ["--arch", "sm_90"], "rows": {"oversized": ROOMY}},
    "slow": {"variants": ["slow"], "arguments": ["--arch", "sm_80"], "rows": {"slow": ROOMY}},
    "broken": {"variants": ["broken"], "arguments": ["--arch", "sm_80"], "rows": {"broken": ROOMY}},
    "misfit": {"variants": ["misfit"], "arguments": ["--arch", "sm_80"], "rows": {}},
    "missing": {"variants": ["good"], "arguments": [], "rows": {}},
    "stale": {"variants": ["good"], "arguments": ["--arch", "sm_90"], "rows": {"good": ROOMY, "gone": ROOMY}},
    "update": {"variants": ["good", "spills"], "arguments": ["--arch", "sm_80", "--update"], "rows": {"gone": ROOMY}},
    "unknown": {"variants": ["good"], "arguments": ["--op", "toil"], "rows": {}},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aot")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "answers.json").read_text())


@needs_triton
def test_a_good_kernel_passes(answers):
    answer = answers["good"]
    assert answer["code"] == 0, answer["output"]
    on_80, on_90 = answer["report"]
    assert (on_80["arch"], on_90["arch"]) == ("sm_80", "sm_90")
    assert on_80["resources"]["mma"] == "mma.sync"
    assert on_90["resources"]["mma"] == "wgmma"
    for row in (on_80, on_90):
        assert row["resources"]["copies"] == "cp.async"
        assert 0 < row["resources"]["registers"] <= 128
        assert row["resources"]["shared"] >= 2 * 2 * 64 * 64 * 2  # two of the three stages, two bf16 tiles each
        assert row["blocks_per_sm"] >= 1
        issued, multiplied = map(int, row["resources"]["loop"].split(":"))
        # Four warps: a step of 64x64x64 bf16 numbers, at 1024 multiply-adds a cycle on sm_80 and twice that on sm_90.
        assert (multiplied, issued > 0) == (256 if row["arch"] == "sm_80" else 128, True)
    assert "BM=64" in answer["output"]
    assert answer["output"].endswith("2 kernels, 0 failures\n")


@needs_triton
def test_spills_are_caught(answers):
    (row,) = answers["spills"]["report"]
    assert answers["spills"]["code"] == 1
    assert row["resources"]["spills"] > 0
    assert [problem.split()[0] for problem in row["problems"]] == ["stack:", "spills:"]


@needs_triton
def test_too_much_shared_memory_is_caught(answers):
    (row,) = answers["oversized"]["report"]
    assert answers["oversized"]["code"] == 1
    assert row["problems"] == [f"shared: {row['resources']['shared']} bytes, sm_90 has {227 * KIB} for a block"]
    assert row["blocks_per_sm"] == 0


@needs_triton
def test_missing_instructions_are_caught(answers):
    assert answers["slow"]["code"] == 1
    (row,) = answers["slow"]["report"]
    assert row["problems"] == [f"needs {need}, which the machine code lacks" for need in ("async", "mma")]


@needs_triton
def test_a_compile_error_is_a_row(answers):
    assert (answers["broken"]["code"], answers["misfit"]["code"]) == (1, 1)
    (broken,), (misfit,) = answers["broken"]["report"], answers["misfit"]["report"]
    assert broken["problems"][0].startswith("does not compile: ")
    assert "power of 2" in broken["problems"][0]
    assert "\n" not in broken["problems"][0]
    assert "expected the kernel's arguments, a, b, c" in misfit["problems"][0]
    assert "Traceback" not in answers["broken"]["output"] + answers["misfit"]["output"]


@needs_triton
def test_a_missing_row_fails(answers):
    assert answers["missing"]["code"] == 1
    assert [row["problems"] for row in answers["missing"]["report"]] == [
        ["no row in the budgets: --update writes one"]
    ] * 2


@needs_triton
def test_a_stale_row_fails(answers):
    assert answers["stale"]["code"] == 1
    good, gone = answers["stale"]["report"]
    assert good["problems"] == []
    assert gone["variant"] == "gone"
    assert gone["problems"][0].startswith("stale")


@needs_triton
def test_update_writes_the_rows_and_still_fails_on_spills(answers):
    answer = answers["update"]
    assert answer["code"] == 1
    rows = answer["budgets"]["sm_80"]
    assert set(rows) == {"good", "spills"}  # the stale one is gone
    assert rows["good"]["registers"] % 8 == 0
    assert rows["good"]["needs"] == ["mma", "async"]
    assert not {"stack", "spills"} & set(rows["spills"])  # none is ever allowed
    assert answer["budgets"]["sm_90"] == {"gone": ROOMY}  # not asked for
    assert [bool(row["problems"]) for row in answer["report"]] == [False, True]


@needs_triton
def test_an_unknown_op_is_refused(answers):
    assert answers["unknown"]["code"] == 2
    assert "--op: expected some of toy; got toil" in answers["unknown"]["output"]


@needs_triton
def test_split_products_are_added_up_chunk_by_chunk(answers):
    """What the search's bound rests on: Triton makes one accumulator of a sum of single products, and must not here."""
    assert answers["chunks"] == {"fp32": 1, "bf16": 0}


@needs_triton
def test_one_variant_of_each_kernel_is_within_the_committed_budgets(answers):
    """The quick part of the next test: what a change of compiler or kernel does shows in most variants."""
    sample = answers["sample"]
    assert len(sample) >= 2 * 7  # kernels of four ops and more, for two architectures
    assert all(sum(name.startswith(f"sm_{arch} ") for name in sample) >= 7 for arch in aot.SHARED_LIMIT)
    assert {name: problems for name, problems in sample.items() if problems} == {}


@needs_triton
@pytest.mark.slow
def test_every_kernel_is_within_the_committed_budgets():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "hqtvae_fast.ops.aot"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


# ------------------------------------------------------------------------------------------- as a program of its own


def toy_variants():
    """A product of bf16 matrices, well and badly tiled."""
    import triton
    import triton.language as tl

    @triton.jit
    def product(a, b, c, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
        o_m = tl.program_id(0) * BM + tl.arange(0, BM)
        o_n = tl.program_id(1) * BN + tl.arange(0, BN)
        o_k = tl.arange(0, BK)
        b_sum = tl.zeros((BM, BN), dtype=tl.float32)
        for i_k in range(0, K, BK):
            b_a = tl.load(a + o_m[:, None] * K + (i_k + o_k)[None, :])
            b_b = tl.load(b + (i_k + o_k)[:, None] * N + o_n[None, :])
            b_sum = tl.dot(b_a, b_b, b_sum, input_precision=PRECISION)
        tl.store(c + o_m[:, None] * N + o_n[None, :], b_sum)

    def variant(name, tile, warps, stages, dtype="*bf16", aligned=("a", "b", "c", "N", "K")):
        signature = {"a": dtype, "b": dtype, "c": "*fp32", "N": "i32", "K": "i32"}
        constants = dict(zip(("BM", "BN", "BK"), tile, strict=True)) | {"PRECISION": "ieee"}
        return Variant(name, product, signature, constants, aligned, warps, stages, ("mma", "async"))

    toys = [
        variant("good", (64, 64, 64), 4, 3),
        variant("spills", (128, 64, 32), 1, 2),  # 256 sums in each thread
        variant("oversized", (128, 256, 128), 8, 4),  # 96 KB a stage
        variant("slow", (16, 16, 16), 1, 1, "*fp32", aligned=()),  # exact fp32, and nothing loaded ahead
        variant("broken", (48, 64, 64), 4, 3),
    ]
    misfit = dataclasses.replace(toys[0], name="misfit", signature={"a": "*bf16", "x": "i32"})
    return {toy.name: toy for toy in [*toys, misfit]}


def answer(request, folder: Path, toys) -> dict:
    """One call of ``main``, on a made-up op and budgets."""

    def nothing(*inputs):
        raise NotImplementedError

    variants = [toys[name] for name in request["variants"]]
    spec = Spec(
        "toy", (), (), nothing, nothing, nothing, nothing, lambda case: Cost(0, 0), variants=lambda arch: variants
    )
    aot.all_specs = lambda: {"toy": spec}
    aot.BUDGETS, report = folder / "budgets.json", folder / "report.json"
    report.write_text("[]")
    version = aot.triton_version()
    BudgetFile({version: {"sm_80": request["rows"], "sm_90": request["rows"]}}).write(aot.BUDGETS)
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = aot.main([*request["arguments"], "--json", str(report)])
    budgets, rows = BudgetFile.read(aot.BUDGETS).of(version), json.loads(report.read_text())
    return {"code": code, "output": output.getvalue(), "report": rows, "budgets": budgets}


def once(compile_variant):
    known = {}

    def compiled(variant, arch, instructions=True):
        key = (variant.name, arch, instructions)
        if key not in known:
            known[key] = compile_variant(variant, arch, instructions)
        return known[key]

    return compiled


def sums_outside_tensor_cores() -> dict[str, int]:
    """How many times the search's kernel adds a whole tile of products by itself, by the dtype of z."""
    from hqtvae_fast.ops.kernels.nearest_code.spec import SPEC
    from hqtvae_fast.ops.kernels.nearest_code.triton import SMALL

    found = {}
    for z in ("fp32", "bf16"):
        name = f"score {z} {SMALL.rows}x{SMALL.codes}"
        variant = next(variant for variant in SPEC.variants(80) if variant.name == name)
        code = aot._compile(variant, 80).asm["ttir"]
        tile = f"tensor<{SMALL.rows}x{SMALL.codes}xf32>"
        found[z] = sum("arith.addf" in line and tile in line for line in code.splitlines())
    return found


def size_of(variant) -> int:
    """Of its tile, and so about how long it takes to compile."""
    return math.prod(value for value in variant.constants.values() if type(value) is int and value > 0)


def judged_sample() -> dict[str, list[str]]:
    """The problems of each kernel's smallest variant, for one of the architectures in turn."""
    budgets = BudgetFile.read(COMMITTED).of(aot.triton_version())
    problems, judged = {}, set()
    for turn, arch in enumerate(aot.SHARED_LIMIT):
        least: dict = {}
        for spec in all_specs().values():
            for variant in spec.variants(arch):
                least[variant.kernel] = min(least.get(variant.kernel, variant), variant, key=size_of)
        for number, variant in enumerate(least.values()):
            if number % len(aot.SHARED_LIMIT) == turn:
                budget = budgets[f"sm_{arch}"].get(variant.name)
                needs = bool({*variant.needs, *(budget or {}).get("needs", ())})
                found = aot.compile_variant(variant, arch, instructions=needs)
                problems[f"sm_{arch} {variant.name}"] = judge(found, budget, arch)
                judged.add(variant.kernel)
        assert turn == 0 or judged == set(least), set(least) - judged
    return problems


if __name__ == "__main__":
    target = Path(sys.argv[1])
    variants_by_name = toy_variants()
    aot.compile_variant = once(aot.compile_variant)  # several requests are about the good one
    given = {name: answer(request, target, variants_by_name) for name, request in REQUESTS.items()}
    given["sample"] = judged_sample()
    given["chunks"] = sums_outside_tensor_cores()
    (target / "answers.json").write_text(json.dumps(given))

"""``benchmarks/STATUS.md`` is what its command writes, and a GPU's results file changes it."""

from __future__ import annotations

import re

import pytest

from benchmarks.measuring.environment import HERE
from benchmarks.measuring.schema import Results, Row
from benchmarks.report import parts, status
from hqtvae_fast.ops.spec import all_specs
from hqtvae_fast.plan_file import Measured, PlanFile

CPU = {"device": "AMD EPYC", "cpu": "AMD EPYC", "date": "2026-11-24T12:00:00", "command": "generate"}
GPU = {**CPU, "device": "NVIDIA H100 80GB HBM3"}


@pytest.fixture(scope="module")
def specs():
    return [spec for _, spec in sorted(all_specs().items())]


def test_the_committed_file_is_what_the_command_writes(capsys):
    assert status.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_file_is_found(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(status, "FILE", tmp_path / "STATUS.md")
    assert status.main(["--check"]) == 1
    assert "not what `python -m benchmarks.report.status` writes" in capsys.readouterr().err
    assert status.main([]) == 0
    assert status.main(["--check"]) == 0
    assert status.main(["--chekc"]) == 2


def lines(text):
    """The last column by the first."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[-1] for row in rows}


def test_only_a_run_on_a_gpu_counts(specs):
    row = Row("nearest_code, small", "ours: triton", ((1.0,),), work={"op": "nearest_code"})
    before = status.status([Results("ops", CPU, (row,))], specs)
    assert set(lines(before).values()) <= {"no", "for CPUs", "met a GPU", "timed, and the share of its floor"}
    after = lines(status.status([Results("ops", GPU, (row,))], specs))
    assert after["nearest_code"] == "cuda: no; triton: NVIDIA H100 80GB HBM3, 2026-11-24"
    assert after["upsample_conv"] == "no"


def test_a_share_of_the_floor_is_the_best_one(specs):
    works = [{"op": "upsample_conv", "floor_seconds": floor} for floor in (0.25, 0.5)]
    rows = tuple(Row(f"upsample_conv, {work}", "ours: triton", ((1.0,),), work=work) for work in works)
    assert lines(status.status([Results("ops", GPU, rows)], specs))["upsample_conv"].endswith("2026-11-24, 50%")


def test_a_gpus_plans_say_what_was_verified_and_timed(specs):
    site = "upsample_conv | bf16[1,512,16,16]nhwc bf16[2048,512,2,2]nhwc bf16[512]"
    facts = {"device": "NVIDIA A100", "multiprocessors": 108}
    plan = PlanFile(
        "tuned",
        facts,
        {site: Measured("triton/128x128x64", median=20.0)},
        verified=frozenset({"nearest_code triton", "bias_gelu triton/512x2"}),
    )
    told = status.status([], specs, [plan])
    rows = {row[0]: row[-2:] for row in (line.strip("| ").split(" | ") for line in told.splitlines())}
    assert rows["upsample_conv"] == ["NVIDIA A100", "NVIDIA A100"]
    assert rows["nearest_code"] == ["cuda: no; triton: NVIDIA A100", "no"]
    assert rows["bias_gelu"] == ["NVIDIA A100", "no"]
    assert rows["add_layer_norm"] == ["no", "no"]
    on_a_cpu = PlanFile("tuned", {**facts, "multiprocessors": None}, plan.choices, verified=plan.verified)
    assert status.status([], specs, [on_a_cpu]) == status.status([], specs)


def test_the_newest_run_is_told(specs):
    row = Row("S, batch 8: draw", "hqtvae_fast", ((1.0,),), work={"part": "draw"})
    old, new = ({**GPU, "date": date} for date in ("2026-11-24T12:00:00", "2026-11-25T12:00:00"))
    told = lines(status.status([Results("generate", new, (row,)), Results("generate", old, (row,))], specs))
    assert told["drawing codes, a captured step"].endswith("2026-11-25")
    assert told["decoding, captured"] == "no"


def test_a_part_of_the_script_counts_if_it_passed(specs):
    rows = parts.rows_of("8|120|FAILED (1)|GPU tests\n9|70|ok|compute-sanitizer\n")
    told = lines(status.status([Results("gpu", GPU, rows)], specs))
    assert told["pytest -m gpu"] == "no"
    assert told["compute-sanitizer, with planted faults"].startswith("NVIDIA H100")


def test_each_cuda_kernel_says_how_it_is_checked():
    sources = {file.stem for file in (HERE.parent / "csrc/cuda").glob("*.cu")}
    assert sources == set(status.CUDA_KERNELS)


def test_its_links_exist(specs):
    for link in re.findall(r"\]\(([^)]+)\)", status.status([], specs)):
        assert (HERE / link).exists(), link


def test_how_often_a_proof_is_right_is_told(specs):
    rows = (Row("faults were missed", "tune", ((0, 1),), "count", work={"tried": 7}),)
    text = status.status([Results(status.PROOF, CPU, rows)], specs)
    told = "Proof of variants by `hqtvae tune` (AMD EPYC, 2026-11-24), in 2 runs: 1 of 14 faults were missed."
    assert text.endswith(f"\n\n{told}\n")

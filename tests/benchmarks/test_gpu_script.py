"""``benchmarks/gpu.sh`` and what it runs, as far as that goes without a GPU; and the workflows that run the gate."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from torch.cuda._utils import _get_device_index

from benchmarks.gate import compare
from benchmarks.measuring import environment
from benchmarks.sanitizer import __main__ as sanitizer
from benchmarks.sanitizer import cases
from benchmarks.suites import encode, engine, generate, head, ops, steps, train
from hqtvae_fast.cli.many import ManyValues

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu.sh"


def gpu(*arguments, python=sys.executable):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
    )


def test_a_dry_run_lists_the_parts_and_their_time():
    result = gpu("--dry-run", "--out", "here")
    assert result.returncode == 0, result.stderr
    found = re.findall(r"^part (\d+), about (\d+) s, at most (\d+) s:", result.stdout, re.M)
    times = {int(part): (int(expected), int(limit)) for part, expected, limit in found}
    assert sorted(times) == list(range(1, 15))
    assert all(expected < limit for expected, limit in times.values())
    expected, total = (sum(times[part][index] for part in range(1, 8)) for index in (0, 1))
    assert total < 540
    assert f"about {expected} s, at most {total} s for part(s) 1 2 3 4 5 6 7." in result.stdout
    assert "--json here/ops.json" in result.stdout


def test_what_it_runs_by_itself_is_one_process_a_part_and_compiles_no_baseline():
    first, _, rest = gpu("--dry-run").stdout.partition("--- with --part only")
    commands = [line for line in first.splitlines() if line.startswith("    ")]
    assert len(commands) == 7
    assert all(" --baselines none" in line for line in commands if "suites.generate" in line)
    assert not any("nearest_code" in line or "--all" in line for line in commands)
    assert "--all" in rest
    assert "part 10" not in gpu("--dry-run", "--part", "1").stdout


def test_help_is_the_scripts_head():
    lines = gpu("--help").stdout.splitlines()
    assert lines[0].startswith("Everything that needs a GPU")
    assert lines[-1].endswith("benchmarks.report.status.")


def test_every_program_that_it_names_exists():
    modules = set(re.findall(r"-m (benchmarks[.\w]*)", gpu("--dry-run").stdout))
    assert {"benchmarks.suites.ops", "benchmarks.suites.generate", "benchmarks.sanitizer"} <= modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_every_benchmark_that_it_runs_takes_its_options(tmp_path):
    """Each command's arguments are parsed, as far as that goes without a GPU."""
    lines = re.findall(r"-m (benchmarks[.\w]*) (.*)", gpu("--dry-run", "--out", str(tmp_path)).stdout)
    commands = {"ops": ops.ops, "generate": generate.generate, "train": train.train, "encode": encode.encode}
    commands |= {"head": head.head, "engine": engine.engine, "steps": steps.steps}
    parsers = {f"benchmarks.suites.{name}": typer.main.get_command(_app(run)) for name, run in commands.items()}
    parsers["benchmarks.cli"] = typer.main.get_command(_app(compare.compare))
    seen = 0
    for module, arguments in lines:
        if module in parsers:
            words = shlex.split(arguments)
            parsers[module].make_context(module, words[1:] if module == "benchmarks.cli" else words)
            seen += 1
    assert seen > 15


@pytest.mark.parametrize("name,number", [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_gpu_is_picked_with_and_without_its_number(name, number, monkeypatch):
    """Torch's own reading of a device's number, which refuses one without; there is no GPU to be set."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(_get_device_index(device)))
    assert environment.pick_device(name) == torch.device(name)
    assert chosen == [number]


def _app(run):
    app = typer.Typer(add_completion=False)
    app.command(cls=ManyValues)(run)
    return app


def test_one_part():
    result = gpu("--dry-run", "--part", "3")
    assert result.stdout.startswith("part 3,")
    assert "part 4" not in result.stdout


STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *benchmarks.studies.idle*) echo "no profiler" >&2; exit 3 ;;
  *benchmarks.suites.ops*) echo "a wrong op"; exit 1 ;;
esac
"""


def test_a_rehearsal_with_a_stand_in_for_python(tmp_path):
    """A part that fails stops no other; what each said is kept, also where its end is cut off."""
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    result = gpu("--out", str(out), python=python)
    assert result.returncode == 1
    outcomes = [line.split("|")[2] for line in (out / "summary.txt").read_text().splitlines()]
    assert outcomes == ["ok", "ok", "NOT RUN: a program is absent", "ok", "FAILED (1)", "ok", "ok"]
    assert (out / "part-3.log").read_text() == "no profiler\n"
    assert (out / "part-5.log").read_text() == "a wrong op\n"


@pytest.mark.parametrize("arguments", [("--part", "15"), ("--part", "0"), ("--part", "x"), ("--fast",)])
def test_wrong_arguments_are_refused(arguments):
    assert gpu(*arguments).returncode == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so the script would run")
def test_without_a_gpu_it_says_so():
    result = gpu()
    assert result.returncode == 2
    assert "torch sees no GPU here" in result.stderr


# ----------------------------------------------------------------------------------------------------- the sanitizer


def checked(codes):
    """What :func:`check_tool` says when its three commands end with these codes, and the commands."""
    left, ran = list(codes), []
    found = sanitizer.check_tool("racecheck", "faults", [], lambda command: (ran.append(command), left.pop(0))[1])
    return found, ran


def test_a_tool_must_find_its_fault_before_ours_are_believed():
    found, ran = checked([9, 0, 0])
    assert found == []
    assert [command[-1] for command in ran] == ["racecheck", "nothing", "benchmarks.sanitizer.cases"]
    assert "was not found" in checked([0])[0][0]
    assert "a faultless kernel failed" in checked([9, 9])[0][0]
    assert checked([9, 0, 9])[0] == ["racecheck: faults in our kernels"]
    assert checked([9, 0, 2])[0] == ["racecheck: exit code 2"]


def test_programs_that_are_absent_are_named(monkeypatch, capsys):
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: None)
    assert sanitizer.main([]) == sanitizer.ABSENT
    assert "compute-sanitizer, nvcc not on PATH" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so the cases would run")
def test_the_cases_need_a_gpu(capsys):
    assert cases.main([]) == 2
    assert "expected a GPU" in capsys.readouterr().err


def test_the_planted_faults_compile(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    subprocess.run(["nvcc", "-arch=sm_90", "-o", str(tmp_path / "faults"), str(sanitizer.SOURCE)], check=True)
    source = sanitizer.SOURCE.read_text()
    assert all(f'"{name}"' in source for name in (*sanitizer.TOOLS, "nothing"))
    result = subprocess.run([str(tmp_path / "faults"), "bogus"], capture_output=True, text=True)
    assert result.returncode == 2


# -------------------------------------------------------------------------------------------------------- workflows


@pytest.mark.parametrize("file", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda file: file.name)
def test_workflows_are_well_formed_and_pin_their_tools(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"]["contents"] == "read"
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "pip install" in step.get("run", ""):
                # The nightly one is there to try what the pins keep out.
                assert ("-c constraints.txt" in step["run"]) == (file.name != "nightly.yml")


def test_the_workflows_run_what_exists():
    text = "".join(file.read_text() for file in (ROOT / ".github/workflows").glob("*.yml"))
    commands = set(re.findall(r"hqtvae bench (\w+)", text))
    assert commands == {"compare", "report"}
    assert "pytest benchmarks -q --benchmark-disable" in text

"""``hqtvae bench``, and its comparison of revisions from checkout to verdict."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.cli import COMMANDS, function_of
from benchmarks.gate import compare, counters, pairs, proxies, revisions, worker
from benchmarks.gate.pairs import Paired, Plan, Side, Worker, measure
from benchmarks.measuring import schema
from benchmarks.measuring.environment import describe
from benchmarks.measuring.schema import Results, Row
from hqtvae_fast import cli
from hqtvae_fast.cli import bench

ROOT = Path(__file__).parents[2]
WORKLOAD = {"suite": "generate", "preset": "tiny", "batch": 1, "device": "cpu", "part": "decode"}


@pytest.fixture
def folder(tmp_path):
    """A side's folder, as :func:`benchmarks.gate.revisions.checked_out` makes it, of this checkout itself."""
    for name in ("hqtvae_fast", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


# ----------------------------------------------------------------------------------------------------------- the pairs


class Caches:
    """Workers on one core: a call is quicker where the one before it was of the same process, whose data are cached."""

    def __init__(self, cold=1.0, warm=0.97):
        self.asked, self.cold, self.warm = [], cold, warm

    def worker(self, name):
        def ask(part, calls, slow=0.0):
            self.asked.append(name)
            return self.warm if self.asked[-2:-1] == [name] else self.cold

        return SimpleNamespace(ask=ask)


def turns_of(names, turns, number=0):
    """What is asked for, in order, and the pairs that come of it."""
    caches, sides = Caches(), [Side(name, Path(name[0])) for name in names]
    workers = {folder: caches.worker(str(folder)) for folder in dict.fromkeys(side.folder for side in sides)}
    pairs_of = [Paired([{}, {}]) for _ in names[1:]]
    pairs._take_turns("x", sides, workers, Plan({}, turns=turns), pairs_of, number)
    return "".join(caches.asked)[len(workers) * pairs.WARM_UP :], pairs_of


def test_sides_alternate_and_the_first_one_changes_with_the_round():
    assert turns_of("ab", 3)[0] == "ababab"
    assert turns_of("ab", 3, number=1)[0] == "bababa"
    assert turns_of(("a", "b1", "b2"), 2)[0] == "abababab"


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("number", [0, 1])
def test_no_side_gains_by_following_itself(turns, number):
    """Two equal sides are equal to the last bit, with however few turns."""
    for names in ("ab", ("a", "b1", "b2", "b3")):
        for pair in turns_of(names, turns, number)[1]:
            assert pair.log_ratios("x") == [0.0]


def test_a_worker_that_dies_says_why(folder):
    message = r"ended with 1: .*expected one of S, .* got 'huge'"
    with Worker(folder, {**WORKLOAD, "preset": "huge"}) as dying, pytest.raises(RuntimeError, match=message):
        dying.listen()


@pytest.mark.slow
def test_a_worker_of_another_package_is_refused(folder):
    with Worker(folder, WORKLOAD) as other:
        other._folder = folder / "elsewhere"
        with pytest.raises(RuntimeError, match=r"elsewhere: expected .*elsewhere/hqtvae_fast; got"):
            other.ready()


@pytest.mark.slow
def test_sides_take_turns_and_each_pair_has_processes_of_its_own(folder, monkeypatch):
    """Units that share a process they were forked from share its luck, and are not independent. Both sides of a pair
    hash alike. Sides of one folder share a process."""
    said = []
    ready = Worker.ready
    monkeypatch.setattr(Worker, "ready", lambda self: said.append((self._process.pid, answer := ready(self))) or answer)
    other = folder / "other"
    other.mkdir()
    for name in ("hqtvae_fast", "benchmarks"):
        (other / name).symlink_to(ROOT / name)
    plan = Plan(WORKLOAD, rounds=2, turns=3, least_seconds=0.001)
    sides = [Side("base", folder), Side("new, slower", folder, slow=1.0), Side("new", other)]
    slower, new = measure(sides, plan)
    part = "tiny, batch 1: decode"
    for paired in (slower, new):
        assert [list(samples) for samples in paired.samples] == [[part], [part]]
        assert [[len(turns) for turns in samples[part]] for samples in paired.samples] == [[3, 3], [3, 3]]
        assert paired.environments[0]["threads"] == 1
    assert all(0.3 < ratio < 1.2 for ratio in slower.log_ratios(part))  # log 2 is 0.69
    assert len({pid for pid, _ in said}) == 4
    hashes = [answer["hash"] for _, answer in said]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]


def test_a_planted_loss_is_as_long_as_it_says():
    clock = iter([0.0, 1.0, 1.0, 1.05, 1.2, 1.2])
    assert worker.timed(lambda: None, 1, 0.1, lambda: next(clock)) == pytest.approx(1.2)


# ------------------------------------------------------------------------------------------------------- the revisions


def test_the_working_tree_is_a_revision_and_nonsense_is_not():
    assert len(revisions.commit_of(".")) == 40
    assert revisions.is_revision("HEAD")
    assert not revisions.is_revision("no-such-branch")
    assert not revisions.is_revision("--help")


def test_a_job_that_is_cancelled_unwinds():
    def cancelled():
        with revisions.terminated_tidily():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cancelled()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_from_revisions_to_a_verdict(tmp_path, monkeypatch):
    before = revisions.git("worktree", "list")
    said = tmp_path / "said.md"
    options = ("--rounds", "2", "--turns", "2", "--markdown", str(said), "--json", str(tmp_path / "times.json"))
    monkeypatch.setenv("BUILD_CPU", "0")
    assert cli.main(["bench", "compare", "HEAD", ".", "--batch", "1", *options]) == 0
    assert "| tiny, batch 1: draw |" in said.read_text()
    assert "| unclear |" in said.read_text()  # two pairs cannot tell
    assert {row.entrant for row in schema.read(tmp_path / "times.json").rows} == {"base", "new"}
    assert revisions.git("worktree", "list") == before


# --------------------------------------------------------------------------------------------------------- the command


def stored(file, scale, **environment):
    samples = tuple(tuple(scale * (1 + 0.001 * ((7 * p + r) % 5)) for r in range(9)) for p in range(6))
    facts = {**describe(torch.device("cpu"), "ops"), **environment}
    schema.write(Results("ops", facts, (Row("op, case", "ours", samples),)), file)
    return str(file)


def test_files_are_compared_and_a_loss_is_exit_code_1(tmp_path, capsys):
    base, same, slow = (stored(tmp_path / f"{s}.json", s) for s in (1.0, 1.001, 1.05))
    assert cli.main(["bench", "compare", base, same]) == 0
    assert "No loss in 1 rows (threshold 3.0%)." in capsys.readouterr().out
    assert cli.main(["bench", "compare", base, slow]) == 1
    assert "**1 of 1 rows lost**" in capsys.readouterr().out
    assert cli.main(["bench", "compare", base, slow, "--threshold", "0.2"]) == 0
    assert "unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("HEAD", "nowhere"), "nowhere: expected a git revision or a results file; got neither"),
        (("HEAD", ".", "--threshold", "3"), "--threshold: expected a share such as 3% or 0.03; got '3'"),
        (("HEAD", ".", "--threads", "2"), "--clock cpu: expected --threads 1"),
        (("HEAD", ".", "--suite", "ops", "--op", "halve"), "--op: expected some of"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(arguments, message, capsys):
    assert cli.main(["bench", "compare", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_shares():
    assert compare.parse_share("3%") == compare.parse_share("0.03") == 0.03


def test_all_cases_of_an_op_can_be_asked_for():
    assert {op for op, _ in compare.cases(["nearest_code"], small=True)} == {"nearest_code"}
    assert len(compare.cases(None, small=False)) > len(compare.cases(["nearest_code"], small=False)) > 0


def test_without_a_checkout_the_command_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert cli.main(["bench", "compare", "a", "b"]) == 2
    assert "expected a checkout of the repository with benchmarks/" in capsys.readouterr().err


def test_an_extra_that_is_missing_is_named(monkeypatch, capsys):
    def fail(name):
        raise ModuleNotFoundError(name="matplotlib")

    monkeypatch.setattr(bench.importlib, "import_module", fail)
    assert cli.main(["bench", "report"]) == 2
    assert "matplotlib is not installed; `pip install -e '.[bench]'`" in capsys.readouterr().err


def test_the_group_has_help(capsys):
    assert cli.main(["bench", "--help"]) == 0
    assert "compare" in capsys.readouterr().out


def test_an_installed_package_without_a_checkout_says_so_in_a_line(tmp_path):
    """The package alone in a folder, as an installation has it."""
    (tmp_path / "hqtvae_fast").symlink_to(ROOT / "hqtvae_fast")
    command = [sys.executable, "-m", "hqtvae_fast.cli", "bench", "generate", "--preset", "tiny"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "expected a checkout of the repository with benchmarks/" in result.stderr
    assert "pip install -e '.[bench]'" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["bogus"]])
def test_help_and_typos_do_not_import_torch(arguments):
    code = f"import sys, hqtvae_fast.cli as cli; cli.main({['bench', *arguments]}); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_their_help_says(name):
    assert " ".join(inspect.getdoc(function_of(name)).split("\n\n")[0].split()) == COMMANDS[name][1]


def test_importing_the_command_line_does_not_import_benchmarks():
    code = "import sys, hqtvae_fast.cli; print(any(name.startswith('benchmarks') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# --------------------------------------------------------------------------------------------------------- the proxies


def test_what_is_counted_is_right():
    x, y = torch.ones(4, 8), torch.ones(8, 16)
    counts = counters.count(lambda: (x.T.T @ y).view(-1) + 1)
    assert counts.operations == 2  # the transposes and the view are none
    assert counts.flops == 2 * 4 * 8 * 16
    assert counts.bytes == 4 * (4 * 8 + 8 * 16 + 64 + 64 + 64)


def test_what_inference_hides_is_counted_too():
    layer = torch.nn.Linear(8, 16)
    with torch.inference_mode():
        counts = counters.count(lambda: layer(torch.ones(4, 8)))
    assert counts.flops == 2 * 4 * 8 * 16


def test_peak_memory_is_what_was_held_at_once():
    def run():
        kept = torch.empty(1000, dtype=torch.int8)
        for _ in range(3):
            torch.empty(500, dtype=torch.int8)
        return kept

    assert 1500 <= counters.peak_bytes(run) <= 1500 + 2 * 64


def test_graph_breaks_are_counted():
    def broken(x):
        return x + 1 if bool(x.sum() > 0) else x - 1

    assert counters.graph_breaks(lambda x: x + 1, torch.ones(2)) == 0
    assert [counters.graph_breaks(broken, torch.ones(2)) for _ in range(2)] == [1, 1]


def test_counts_repeat_exactly(monkeypatch):
    monkeypatch.setattr(counters, "graph_breaks", lambda run: 0)  # 10 s each time: the next test's
    rows, again = list(proxies.counted_rows()), proxies.counted_rows()
    first, second = ({row.name: row.median for row in counted} for counted in (rows, again))
    assert first == second
    assert first["tiny, batch 2: draw: launches a step"] > 10
    assert first["tiny, batch 2: decode: FLOPs in torch's operations"] > 1e6
    assert {row.unit for row in rows} == {"launches", "bytes", "flops", "breaks"}


@pytest.mark.slow
def test_graph_breaks_repeat_exactly():
    """Slow: that two counts of a function agree is seen on small ones too."""
    first, second = ([row.median for row in proxies.counted_rows() if row.unit == "breaks"] for _ in range(2))
    assert first == second


@pytest.mark.slow
def test_quotients_and_least_work():
    (draw, decode) = proxies.ratio_rows()
    assert draw.unit == decode.unit == "ratio"
    assert len(draw.samples[0]) == proxies.TURNS
    assert all(value > 0 for value in draw.runs + decode.runs)
    names = [row.name for row in proxies.least_work_rows()]
    assert "S: FLOPs of drawing an image" in names
    assert len(names) == len(set(names))


def test_proxies_without_kernels_say_so(monkeypatch):
    monkeypatch.setattr(proxies, "counted_rows", lambda: iter(()))
    results = proxies.measure(kernels=False)
    assert results.details["notes"] == ["no kernels were compiled ahead of time: --no-kernels"]
    assert json.dumps(results.to_document())


def test_kernels_become_rows(monkeypatch):
    found = [
        {"arch": "sm_90", "variant": "v", "resources": {"registers": 128, "spills": 0, "shared": 1024}, "problems": []},
        {"arch": "sm_90", "variant": "w", "resources": None, "problems": ["does not compile"]},
    ]

    def compiled(command, **_):
        Path(command[command.index("--json") + 1]).write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(proxies.subprocess, "run", compiled)
    notes = []
    rows = {row.name: row.median for row in proxies.kernel_rows(notes)}
    assert rows == {"sm_90 v: registers": 128, "sm_90 v: spills": 0, "sm_90 v: shared memory": 1024}
    assert notes == ["sm_90 w: does not compile"]

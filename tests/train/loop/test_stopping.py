"""Signals and runs: in this process, and in processes that are sent real ones."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("accelerate", reason="training needs the train extra")

from small_runs import COMMON, TRANSFORMER, VAE, losses, same, stage1, weights, write_pictures

from hqtvae_fast.cli import main
from hqtvae_fast.train.loop.stopping import ASKING, Signals, Stopped
from hqtvae_fast.train.run import train_stage1
from hqtvae_fast.train.stage1 import Stage1

STEPS = 16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


# ------------------------------------------------------------------------------------------------ in this process


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in ASKING]


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_asks(capfd, number):
    before = handlers()
    with Signals() as signals:
        assert signals.asked is None
        os.kill(os.getpid(), number)
        assert signals.asked == number
        os.kill(os.getpid(), signal.SIGTERM)  # batch systems may repeat it
        assert signals.asked == number
    assert handlers() == before
    said = capfd.readouterr().err
    assert said.count("saving after this update") == 1
    assert ("Ctrl-C again ends at once" in said) == (number == signal.SIGINT)


@pytest.mark.parametrize("first", ASKING)
def test_the_second_interrupt_ends_at_once(first):
    before, ended = handlers(), False
    try:
        with Signals(shown=False):
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        ended = True
    assert ended
    assert handlers() == before


def test_no_handlers_outside_the_main_thread():
    before, inside = handlers(), []

    def enter():
        with Signals() as signals:
            inside.append((handlers(), signals.asked))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == [(before, None)]


def test_a_signal_in_the_last_update_ends_the_process_all_the_same(pictures, tmp_path, monkeypatch):
    """What comes after the run, a second stage say, is not begun."""
    original = Stage1.update

    def update(self, batches, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches, step)

    monkeypatch.setattr(Stage1, "update", update)
    with pytest.raises(Stopped) as stopped:
        train_stage1(stage1(pictures, tmp_path, steps=2))
    assert stopped.value.code == 143
    assert (tmp_path / "model" / "config.json").is_file()


# ------------------------------------------------------------------------------------------- in real processes

START = multiprocessing.get_context("forkserver")  # imports once, then forks: a process starts in no time
LATE = ("torch._dynamo", "torch.utils.tensorboard", "matplotlib.pyplot")  # what training imports on its way
START.set_forkserver_preload(["hqtvae_fast.cli", "hqtvae_fast.train.run", *LATE])


class Run:
    """``hqtvae`` in a process group of its own."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        self.process = START.Process(target=_run, args=(arguments, str(log)))
        self.process.start()

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        self.process.join(60)
        assert self.process.exitcode is not None, "still running"
        return self.process.exitcode


def _run(arguments: list[str], log: str) -> None:
    os.setpgid(0, 0)
    multiprocessing.set_start_method(None, force=True)  # of this process itself, as a command has it
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    torch.set_num_threads(1)  # so that no update's number of threads follows the machine's load
    sys.argv = ["hqtvae", *arguments]
    sys.exit(main())


@pytest.fixture(scope="module")
def commands(pictures, tmp_path_factory):
    """The arguments of a run of each stage into a folder."""
    folder = tmp_path_factory.mktemp("runs of two stages")
    fields = {**COMMON, "data": str(pictures), "steps": STEPS, "save_every": 3, "workers": 2, "learning_rate": 1e-3}
    train_stage1(stage1(pictures, folder / "vae", steps=2))
    own = {
        "stage1": {"model": VAE, "discriminator_channels": 32},
        "stage2": {"model": TRANSFORMER, "vae": str(folder / "vae")},
    }
    for stage, more in own.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({**fields, **more}))

    def command(stage: str, out: Path) -> list[str]:
        return ["train", stage, str(folder / f"{stage}.yaml"), "--out", str(out)]

    return command


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    """A run of each stage that nothing disturbed."""
    runs: dict[str, Path] = {}

    def run(stage: str) -> Path:
        if stage not in runs:
            runs[stage] = tmp_path_factory.mktemp(stage) / "run"
            assert Run(commands(stage, runs[stage]), runs[stage].with_name("log")).end() == 0
        return runs[stage]

    return run


def wait_for_updates(out: Path, count: int, run: Run) -> None:
    file = out / "losses.jsonl"
    while not file.exists() or len(file.read_bytes().splitlines()) < count:
        assert run.process.is_alive(), run.log.read_text()
        time.sleep(0.005)


def ended(commands, stage: str, out: Path, number: int) -> tuple[int, str]:
    """The exit code and the output of a run that was sent a signal, as all of its processes were, after 5 updates."""
    run = Run(commands(stage, out), out.with_name("log"))
    wait_for_updates(out, 5, run)
    run.send(number)
    return run.end(), run.log.read_text()


CASES = [
    pytest.param("stage1", signal.SIGTERM),
    pytest.param("stage2", signal.SIGINT, marks=pytest.mark.slow),
    pytest.param("stage1", signal.SIGINT, marks=pytest.mark.slow),
    pytest.param("stage2", signal.SIGTERM, marks=pytest.mark.slow),
]


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="loaders' processes cannot tell who sends a signal")
@pytest.mark.parametrize("stage, number", CASES)
def test_a_signal_saves_and_the_command_that_is_shown_goes_on(commands, whole, tmp_path, stage, number):
    out = tmp_path / "my run"
    code, said = ended(commands, stage, out, number)
    assert code == 128 + number, said
    saved = sorted((out / "checkpoints").iterdir())[-1]
    step = int(saved.name.removeprefix("step-"))
    assert 5 <= step < STEPS
    line = f"stopped after update {step} of {STEPS}, saved as {saved}; to go on: hqtvae "
    assert said.splitlines()[-1].startswith(line), said
    again = shlex.split(said.splitlines()[-1].removeprefix(line))
    assert again == commands(stage, out)
    assert not [word for word in ("Traceback", "worker", "interrupted") if word in said], said
    assert Run(again, tmp_path / "log").end() == 0
    assert losses(out) == losses(whole(stage))
    assert same(weights(out), weights(whole(stage)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_kill_costs_no_more_than_what_was_not_saved(commands, whole, tmp_path, stage):
    out = tmp_path / "run"
    assert ended(commands, stage, out, signal.SIGKILL)[0] == -signal.SIGKILL
    run = Run(commands(stage, out), tmp_path / "log")
    assert run.end() == 0
    assert "going on from" in run.log.read_text()
    assert losses(out) == losses(whole(stage))
    assert same(weights(out), weights(whole(stage)))


@pytest.mark.slow
def test_a_signal_to_a_launcher_stops_all_processes_after_the_same_update(commands, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for name, number in (("whole", None), ("stopped", signal.SIGTERM), ("stopped", None)):
        out = tmp_path / name
        command = [*launch, "-m", "hqtvae_fast.cli", *commands("stage1", out)]
        with (tmp_path / "log").open("w+") as log, subprocess.Popen(command, env=env, stderr=log) as started:
            if number is not None:
                while not (out / "losses.jsonl").exists():
                    assert started.poll() is None
                    time.sleep(0.01)
                started.send_signal(number)
            started.wait(180)
        said = (tmp_path / "log").read_text()
        assert (started.returncode == 0) == (number is None), said
        if number is not None:
            assert said.count(f" of {STEPS}, saved as ") == 1, said
            assert not (out / "model").exists()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))

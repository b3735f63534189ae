"""Help, version, and what becomes of errors in any command."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.cli.app import _COMMANDS
from hqtvae_fast.cli.output import unique_names
from hqtvae_fast.files import write_file

from .conftest import Run, assert_one_line_error, pixels

CLASSES = GOLDEN / "class_parallel"
SAMPLE = ("sample", CLASSES, "--classes", "1")
EXAMPLES = {command.__name__: example for command, (_, example) in _COMMANDS.items()}


# --------------------------------------------------------------------------------------------------------------- help


def test_help_and_version(run: Run) -> None:
    for arguments in ((), ("--help",)):
        result = run(*arguments)
        assert result.code == 0
        assert all(command in result.out for command in EXAMPLES)
    result = run("--version")
    assert result.code == 0
    assert version("hqtvae_fast") in result.out
    assert torch.__version__ in result.out


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_help_has_an_example(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert f"Example: hqtvae {command} " in result.out


@pytest.mark.parametrize("command", sorted(set(EXAMPLES) - {"info"}))
def test_examples_are_understood(run: Run, command: str) -> None:
    """They get as far as looking for the checkpoint, or for weights or pictures."""
    missing = "no such file" if command in ("evaluate", "pack") else "no such directory"
    assert_one_line_error(run(*shlex.split(EXAMPLES[command])[1:]), "path/to/", missing)


# ------------------------------------------------------------------------------------------------------------- errors


def _raise_in_pipeline(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HQTVAEPipeline, "stream", fail)


@pytest.mark.parametrize(
    "error, words",
    [
        (MemoryError(), ("not enough memory", "--batch-size")),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), ("not enough memory", "--batch-size")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ("not enough memory", "--batch-size")),
        (PermissionError(13, "Permission denied", "some/file"), ("some/file: Permission denied",)),
        (OSError("no errno"), ("no errno",)),
        (ValueError("two\nlines"), ("two lines",)),
        (RuntimeError("a fault\nof ours"), ("unexpected RuntimeError: a fault", "--debug")),
        (KeyError("key"), ("unexpected KeyError: 'key'",)),
    ],
)
def test_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, words: tuple[str, ...]) -> None:
    _raise_in_pipeline(monkeypatch, error)
    assert_one_line_error(run(*SAMPLE), *words)


def test_interruption(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _raise_in_pipeline(monkeypatch, KeyboardInterrupt())
    result = run(*SAMPLE)
    assert (result.code, result.err.strip()) == (130, "interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first", [True, False])
def test_debug_prints_the_traceback(run: Run, first: bool) -> None:
    command = ("sample", "some/missing/folder")
    result = run("--debug", *command) if first else run(*command, "--debug")
    assert result.code == 2
    assert "Traceback" in result.err
    assert "CheckpointError" in result.err
    assert result.err.splitlines()[-1].startswith("error: some/missing/folder: no such directory")


def test_usage_errors(run: Run) -> None:
    assert_one_line_error(run("paint"), "paint", "hqtvae --help")
    assert_one_line_error(run("sample"), "CHECKPOINT", "hqtvae sample --help")
    assert_one_line_error(run("sample", CLASSES, "--dtype", "int8"), "--dtype", "int8")


def test_process_ends_with_the_exit_code() -> None:
    command = [sys.executable, "-m", "hqtvae_fast.cli", "sample", "some/missing/folder"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr
        == "error: some/missing/folder: no such directory (and neither 'demo' nor a Hub name like owner/name)\n"
    )


# ------------------------------------------------------------------------------------------------------------ writing


@pytest.mark.skipif("not os.path.exists('/dev/full')")
def test_full_device(run: Run) -> None:
    assert_one_line_error(run(*SAMPLE, "--out", "/dev/full"), "/dev/full", "No space left on device")
    assert not Path("/dev/full").is_file()  # still the device


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    """The system lets this process write no file larger than ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("option, name", [("--out", "sheet.png"), ("--save-codes", "codes.safetensors")])
def test_a_write_that_fails_leaves_what_was_there(run: Run, tmp_path: Path, option: str, name: str) -> None:
    (tmp_path / name).write_text("before")
    with _files_up_to(100):
        result = run(*SAMPLE, option, name)
    assert_one_line_error(result, name, "cannot be written (File too large)")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "before"


def test_full_disk(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert_one_line_error(run(*SAMPLE, "--out-dir", "out"), "out/class-0001-0000.png", "No space left on device")
    assert list((tmp_path / "out").iterdir()) == []


def test_paths_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for option in ("--out", "--save-codes"):
        assert_one_line_error(run(*SAMPLE, option, "file/picture"), "file/picture"[:4], "is a file")
        assert_one_line_error(run(*SAMPLE, option, tmp_path), "expected a file")
    assert_one_line_error(run(*SAMPLE, "--out-dir", "file"), "expected a folder")
    assert_one_line_error(run("encode", CLASSES, "photo.png", "--out", "file/deeper/codes"), "is a file")


@pytest.mark.skipif("os.geteuid() == 0", reason="root may write anywhere")
def test_folder_without_permission(run: Run, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert_one_line_error(run(*SAMPLE, "--out", "locked/sheet.png"), "locked", "permission denied")


def test_links_stay_links_and_modes_follow_the_mask(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    mask = os.umask(0o027)
    try:
        write_file(link, b"new")
    finally:
        os.umask(mask)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_unique_names() -> None:
    assert unique_names(["a/x.png", "b/x.jpg", "x-2.png", "", "../.."]) == ["x", "x-2", "x-2-2", "picture", ".."]


def test_output_is_a_picture(run: Run) -> None:
    assert run(*SAMPLE).code == 0
    pixels(Path("sample.png"), (64, 64))

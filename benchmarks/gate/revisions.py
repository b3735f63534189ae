"""Checkouts of git revisions, built and ready to be timed by this harness.

Each revision gets a worktree, in which the compiled part is built, and a folder with two links: ``hqtvae_fast`` of that
revision and ``benchmarks`` of this one. Both sides of a comparison are so timed by the same code.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring.environment import HERE

ROOT = HERE.parent
WORKING_TREE = "."
TERMINATED = 128 + signal.SIGTERM


def git(*arguments: str) -> str:
    """Its output; ValueError with its message where it fails."""
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ValueError(f"git {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout.strip()


def commit_of(revision: str) -> str:
    """The commit's full name. "." is the working tree: tracked files as they are, in a commit that no branch has."""
    if revision == WORKING_TREE:
        return git("stash", "create") or git("rev-parse", "HEAD")
    return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")


def is_revision(name: str) -> bool:
    try:
        commit_of(name)
    except ValueError:
        return False
    return True


@contextmanager
def terminated_tidily() -> Iterator[None]:
    """SIGTERM, as of a job that is cancelled, unwinds like Ctrl-C: no worktree stays behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def checked_out(revision: str, name: str, folder: Path) -> Iterator[Path]:
    """The folder to run a worker in; the worktree is gone afterwards. RuntimeError where the build fails."""
    tree, overlay = folder / f"{name}-tree", folder / name
    git("worktree", "add", "--quiet", "--detach", str(tree), commit_of(revision))
    try:
        build(tree)
        overlay.mkdir()
        (overlay / "hqtvae_fast").symlink_to(tree / "hqtvae_fast")
        (overlay / "benchmarks").symlink_to(HERE)
        yield overlay
    finally:
        git("worktree", "remove", "--force", str(tree))


def build(tree: Path) -> None:
    """The compiled part, in place, as an installation from that tree would build it."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{tree}: the build failed: {(result.stderr.strip().splitlines() or ['no message'])[-1]}")

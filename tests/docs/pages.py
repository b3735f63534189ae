"""The pages that a user reads, and the blocks of code in them."""

from __future__ import annotations

import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]


@dataclass(frozen=True)
class Block:
    """Code between fences; ``line``: where it begins, from 1."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], text[: match.start()].count("\n") + 1) for match in found]


def commands(page: Path) -> list[str]:
    """Those of its bash blocks, in order; lines that end with a backslash are joined."""
    lines = "".join(block.text for block in blocks(page) if block.language == "bash").replace("\\\n", " ")
    return [line for line in lines.splitlines() if line.strip()]


def words(command: str) -> list[str]:
    """As bash splits and expands it, in the working directory; without its comment."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return printed.stdout.split("\0")[:-1]


def options(path: list[str]) -> set[str]:
    """Every option of a command of hqtvae, and of those below it."""
    if path[:1] == ["bench"]:
        return _bench_options(path[1:])
    found = _hqtvae()
    for name in path:
        found = found.commands[name]
    below = [options([*path, name]) for name in getattr(found, "commands", {})]
    return _of(found).union({"--help"}, *below)


@functools.cache
def _hqtvae() -> Any:
    from hqtvae_fast.cli.app import app

    return typer.main.get_command(app)


def _bench_options(names: list[str]) -> set[str]:
    """``hqtvae bench`` knows its commands' options only once they run."""
    from benchmarks.cli import COMMANDS, function_of

    found = {"--help"}
    for name in names or COMMANDS:
        app = typer.Typer()
        app.command(name)(function_of(name))
        found |= _of(typer.main.get_command(app))
    return found


def _of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}

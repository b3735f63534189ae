"""Which of a job's processes this one is, from the variables that torchrun and others set: their one reader."""

from __future__ import annotations

import os
from dataclasses import dataclass


class WorldError(ValueError):
    """Variables of a launcher that fit no job; the message names the variable."""


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes; ``local_rank`` of the ``local_size`` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def world() -> World:
    """This process's place, from ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``.

    A single process where ``WORLD_SIZE`` is 1, empty or not set, whatever the others say. WorldError on what is no
    number or lies outside its range, and on a rank that is missing in a job of several: nobody may think that it is
    rank 0 while another one is.
    """
    size = _number("WORLD_SIZE", 1, 1)
    if size == 1:
        return World()
    rank = _number("RANK", 0, None, below=size)
    local_size = _number("LOCAL_WORLD_SIZE", 1, 1, below=size + 1)
    return World(rank, size, _number("LOCAL_RANK", 0, 0), local_size)


def _number(name: str, least: int, default: int | None, below: int | None = None) -> int:
    """The variable's value, ``default`` where it is empty or not set (None: it must be there)."""
    text = os.environ.get(name, "").strip()
    if not text and default is not None:
        return default
    expected = f"{least} or more" if below is None else f"{least} to {below - 1}"
    if not text.isdecimal() or int(text) < least or (below is not None and int(text) >= below):
        raise WorldError(f"{name}: expected {expected}, as a launcher of several processes sets it; got {text!r}")
    return int(text)

"""The end of a process: ``hqtvae`` and ``python -m hqtvae_fast.cli`` run a command and leave with its exit code."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from hqtvae_fast.cli.app import main
from hqtvae_fast.world import WorldError, world


def run() -> NoReturn:
    """Run the command that the process's arguments name; never returns.

    One of several processes does not take its interpreter apart. Once a model was wrapped for them, torch 2.13 keeps
    gloo's threads even when the group is destroyed; one that still frees the last message while Python is finalized
    ends the process by SIGABRT, and so a finished job as a failed one.
    """
    code = main()
    if _is_one_of_several():
        atexit._run_exitfuncs()  # logs are closed, workers are ended
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _is_one_of_several() -> bool:
    try:
        return world().size > 1
    except WorldError:  # nothing was begun
        return False

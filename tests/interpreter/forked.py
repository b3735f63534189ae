"""Forks a process for each program that is to run interpreted, from this one, which has imported what they need: that
costs 7 s, more than most programs. Reads a request a line, ``{"arguments": as Python's, "out": a file}``, and answers
with the exit status; see :mod:`interpreted`."""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback

import torch
import torch._dynamo  # which torch.library.opcheck imports
import watch

from hqtvae_fast.ops.spec import all_specs


def run(arguments: list[str]) -> None:
    """As ``python *arguments`` would: ``-c`` with a program, or a file, and what is left for them."""
    first, *rest = arguments
    if first == "-c":
        sys.argv = [first, *rest[1:]]
        exec(compile(rest[0], "<program>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(first))
        runpy.run_path(first, run_name="__main__")


def forked(arguments: list[str], out: str) -> int:
    """The exit status of a fork that runs the program, with its output and errors in the file ``out``."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            file = os.open(out, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, sys.stdout.fileno())
            os.dup2(file, sys.stderr.fileno())
            run(arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    watch.install()
    all_specs()
    for line in sys.stdin:
        print(forked(**json.loads(line)), flush=True)

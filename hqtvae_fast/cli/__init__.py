"""The command ``hqtvae``; one module a group of commands. ``main`` returns an exit code, ``run`` leaves the process."""

from hqtvae_fast.cli.app import main
from hqtvae_fast.cli.leave import run

__all__ = ["main", "run"]

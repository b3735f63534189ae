"""The command ``hqtvae``. ``main`` is its entry point; one module a group of commands."""

from hqtvae_fast.cli.app import app, main

__all__ = ["app", "main"]

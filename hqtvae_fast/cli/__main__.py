"""``python -m hqtvae_fast.cli``."""

from hqtvae_fast.cli.leave import run

run()

"""The released implementation's checkpoint format: all this package knows of it.

The layout was read from the released configurations and checkpoints: a directory with ``config.yaml`` and a pickled
``state_dict`` under ``ckpt/``.
"""

from hqtvae_fast.released.config import parse_config, parse_transformer
from hqtvae_fast.released.keys import Source, sources
from hqtvae_fast.released.module import describe_module
from hqtvae_fast.released.state import plain_keys

__all__ = ["Source", "describe_module", "parse_config", "parse_transformer", "plain_keys", "sources"]

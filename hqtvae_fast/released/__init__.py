"""The released implementation's checkpoint format: all this package knows of it.

The layout was read from the released configurations and checkpoints: a directory with ``config.yaml`` and a pickled
``state_dict`` under ``ckpt/``.
"""

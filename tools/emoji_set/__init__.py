"""Parts of ``tools/build_emoji.py``: an emoji training set from public packages."""


class BuildError(Exception):
    """What is wrong and what was expected: shown to the user as one message, without a traceback."""

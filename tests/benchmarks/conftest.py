"""``benchmarks`` is no installed package: its folder's parent comes first, as it does for ``python -m``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

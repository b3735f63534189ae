"""``python -m hqtvae_fast.cli``."""

import sys

from hqtvae_fast.cli import main

sys.exit(main())

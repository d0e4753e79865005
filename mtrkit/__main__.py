"""``python -m mtrkit``: the command line."""

import sys

from mtrkit.cli.main import main

sys.exit(main())

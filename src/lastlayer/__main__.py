"""``python -m lastlayer``: the command line."""

import sys

from lastlayer.cli import main

sys.exit(main())

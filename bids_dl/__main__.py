"""Run the command line with ``python -m bids_dl``."""

import sys

from bids_dl.cli import main

sys.exit(main())

"""`python -m jobkit.cli`: the program where no `jobkit` is on the path."""

import sys

from jobkit.cli import main

sys.exit(main())

"""`python -m ev2` is the `ev2` command."""

import sys

from ev2 import cli

sys.exit(cli.main())

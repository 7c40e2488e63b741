"""`python -m ev2` is the `ev2` command."""

from ev2.cli import main

main.run()

"""The command `ev2 bench calibration`."""

from collections.abc import Sequence

from ev2.cli import flags
from ev2.cli.bench import show
from ev2.cli.commands import command


@command("ev2 bench calibration s.json m.json", flags.JSON, arguments="PLAN...")
def calibration(values: flags.Values, plans: Sequence[str]) -> None:
    """Compares plans for v3-32 with the hours of the paper."""
    from ev2.bench import calibration

    show(values, calibration, calibration.compare(plans))

"""The command `ev2 bench transition`."""

from ev2.cli import flags
from ev2.cli.bench import show
from ev2.cli.commands import command


@command("ev2 bench transition --config=configs/demo.py", flags.RECIPE, flags.JSON)
def transition(values: flags.Values) -> None:
    """Measures the time that a change of stage takes."""
    from ev2.bench import transition

    show(values, transition, transition.measure(values.config))

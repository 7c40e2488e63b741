"""The command `ev2 bench controllers`."""

from ev2.cli import flags
from ev2.cli.bench import show
from ev2.cli.commands import command


@command(
    "ev2 bench controllers --budget=100 --seeds=5",
    flags.integer("budget", "Networks that each search tries.", 200),
    flags.integer("seeds", "Searches for each controller.", 20),
    flags.JSON,
)
def controllers(values: flags.Values) -> None:
    """Compares the controllers of the search where the best network is known."""
    from ev2.bench import controllers

    figures = controllers.measure(budget=values.budget, seeds=range(values.seeds))
    show(values, controllers, figures)

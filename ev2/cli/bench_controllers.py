"""Compares the controllers of the search where the best network is known."""

from ev2.cli import flags

EXAMPLE = "ev2 bench controllers --budget=100 --seeds=5"
FLAGS = (
    flags.integer("budget", "Networks that each search tries.", 200),
    flags.integer("seeds", "Searches for each controller.", 20),
    flags.JSON,
)


def run(values: flags.Values) -> None:
    from ev2.bench import controllers

    figures = controllers.measure(budget=values.budget, seeds=range(values.seeds))
    flags.show(values.json, figures, controllers.format_table(figures))

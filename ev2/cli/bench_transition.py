"""Measures the time that a change of stage takes."""

from ev2.cli import flags

EXAMPLE = "ev2 bench transition --config=configs/demo.py"
FLAGS = (flags.RECIPE, flags.JSON)


def run(values: flags.Values) -> None:
    from ev2.bench import transition

    figures = transition.measure(values.config)
    flags.show(values.json, figures, transition.format_table(figures))

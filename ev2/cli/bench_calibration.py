"""Compares plans for v3-32 with the hours of the paper."""

from collections.abc import Sequence

from ev2.cli import flags

EXAMPLE = "ev2 bench calibration s.json m.json"
ARGUMENTS = "PLAN..."
FLAGS = (flags.JSON,)


def run(values: flags.Values, plans: Sequence[str]) -> None:
    from ev2.bench import calibration

    figures = calibration.compare(plans)
    flags.show(values.json, figures, calibration.format_table(figures))

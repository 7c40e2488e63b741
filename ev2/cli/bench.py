"""Output that the `bench` commands share."""

from typing import Any

from ev2.cli import flags


def show(values: flags.Values, module: Any, figures: Any) -> None:
    flags.show(values.json, figures, module.format_table(figures))

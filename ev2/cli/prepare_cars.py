"""The command `ev2 prepare cars`."""

from ev2.cli import flags
from ev2.cli.commands import command
from ev2.cli.prepare import ARCHIVE, OUT, show


@command(
    "ev2 prepare cars --archive=downloads --out=data/cars",
    *(ARCHIVE, OUT, flags.JSON),
)
def cars(values: flags.Values) -> None:
    """Writes Stanford's cars as shards: train and test."""
    from ev2.data.prepare import cars

    show(values, cars.prepare_cars(values.archive, values.out))

"""The command `ev2 prepare flowers`."""

from ev2.cli import flags
from ev2.cli.commands import command
from ev2.cli.prepare import ARCHIVE, OUT, show


@command(
    "ev2 prepare flowers --archive=downloads --out=data/flowers",
    *(ARCHIVE, OUT, flags.JSON),
)
def flowers(values: flags.Values) -> None:
    """Writes Oxford's 102 flowers as shards: train, validation and test."""
    from ev2.data.prepare import flowers

    show(values, flowers.prepare_flowers(values.archive, values.out))

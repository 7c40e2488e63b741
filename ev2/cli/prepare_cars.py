"""Writes Stanford's cars as shards: train and test."""

from ev2.cli import flags, prepare

EXAMPLE = "ev2 prepare cars --archive=downloads --out=data/cars"
FLAGS = (prepare.ARCHIVE, *prepare.IN_MEMORY_FLAGS)


def run(values: flags.Values) -> None:
    from ev2.data.prepare import cars

    manifest = cars.prepare_cars(values.archive, values.out)
    prepare.show_manifest(values, manifest)

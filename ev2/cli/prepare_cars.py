"""Writes Stanford's cars as shards: train and test."""

import json

from ev2.cli import flags, prepare

EXAMPLE = "ev2 prepare cars --archive=downloads --out=data/cars"
FLAGS = (
    flags.string("archive", "Directory of the data set's own files.", required=True),
    *prepare.PLAIN_FLAGS,
)


def run(values: flags.Values) -> None:
    from ev2.data.prepare import cars

    manifest = cars.prepare_cars(values.archive, values.out)
    flags.show(values.json, manifest, json.dumps(manifest, indent=1))

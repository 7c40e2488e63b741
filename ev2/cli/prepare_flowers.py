"""Writes Oxford's 102 flowers as shards: train, validation and test."""

import json

from ev2.cli import flags, prepare

EXAMPLE = "ev2 prepare flowers --archive=downloads --out=data/flowers"
FLAGS = (
    flags.string("archive", "Directory of the data set's own files.", required=True),
    *prepare.PLAIN_FLAGS,
)


def run(values: flags.Values) -> None:
    from ev2.data.prepare import flowers

    manifest = flowers.prepare_flowers(values.archive, values.out)
    flags.show(values.json, manifest, json.dumps(manifest, indent=1))

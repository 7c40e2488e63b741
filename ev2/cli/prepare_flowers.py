"""Writes Oxford's 102 flowers as shards: train, validation and test."""

from ev2.cli import flags, prepare

EXAMPLE = "ev2 prepare flowers --archive=downloads --out=data/flowers"
FLAGS = (prepare.ARCHIVE, *prepare.IN_MEMORY_FLAGS)


def run(values: flags.Values) -> None:
    from ev2.data.prepare import flowers

    manifest = flowers.prepare_flowers(values.archive, values.out)
    prepare.show_manifest(values, manifest)

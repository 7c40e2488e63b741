"""Flags and output that the `prepare` commands share."""

import json
from collections.abc import Callable
from typing import Any

from ev2.cli import flags

BEAM_FLAGS = (
    flags.string("out", "Directory to fill, local or gs://.", required=True),
    flags.number("shard_mb", "Approximate size of a shard, in 10**6 bytes.", 256.0),
    flags.string("runner", "Beam's runner; the direct runner if not given."),
    flags.integer("workers", "Threads of the direct runner; 0 for all cores.", 0),
    flags.repeated(
        "beam",
        "Option of the runner without its dashes, such as project=NAME; repeatable.",
        [],
    ),
    flags.JSON,
)


OUT = flags.string("out", "Directory to write the shards to.", required=True)


ARCHIVE = flags.string("archive", "Directory of the set's own files.", required=True)


def run_beam(values: flags.Values, list_images: Callable, **options: Any) -> None:
    """Writes the images of a listing as shards and prints their counts."""
    from ev2.data.prepare import beam, build

    beam_options = beam.BeamOptions(
        runner=values.runner or beam.LOCAL,
        workers=values.workers,
        beam=tuple(values.beam),
    )
    beam.check(beam_options)  # before the archives are listed, which takes minutes
    manifest = build.prepare(
        list_images(**options),
        values.out,
        shard_mb=values.shard_mb,
        options=beam_options,
    )
    flags.show(values.json, manifest, build.format_result(manifest, values.out))


def show(values: flags.Values, manifest: dict[str, Any]) -> None:
    flags.show(values.json, manifest, json.dumps(manifest, indent=1))

"""The command `ev2 prepare imagenet21k`."""

from ev2.cli import flags
from ev2.cli.commands import command
from ev2.cli.prepare import BEAM_FLAGS, run_beam


@command(
    "ev2 prepare imagenet21k --source=winter21_whole.tar --out=data/imagenet21k",
    flags.string(
        "source",
        "The uncompressed archive of class archives, or directory of them.",
        required=True,
    ),
    flags.integer(
        "validation_images", "Images to hold out as split validation.", 100_000
    ),
    *BEAM_FLAGS,
)
def imagenet21k(values: flags.Values) -> None:
    """Writes an archive of class archives as shards; duplicates become multi-label."""
    from ev2.data.prepare import imagenet

    options = flags.pick(values, "source", "validation_images")
    run_beam(values, imagenet.list_imagenet21k, **options)

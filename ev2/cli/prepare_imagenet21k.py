"""Writes an archive of class archives as shards; duplicates become multi-label."""

from ev2.cli import flags, prepare

EXAMPLE = "ev2 prepare imagenet21k --source=winter21_whole.tar --out=data/imagenet21k"
FLAGS = (
    flags.string(
        "source",
        "The uncompressed archive of class archives, or directory of them.",
        required=True,
    ),
    flags.integer(
        "validation_images", "Images to hold out as split validation.", 100_000
    ),
    *prepare.BEAM_FLAGS,
)


def run(values: flags.Values) -> None:
    from ev2.data.prepare import imagenet

    prepare.run_beam(
        values,
        lambda: imagenet.list_imagenet21k(
            source=values.source, validation_images=values.validation_images
        ),
    )

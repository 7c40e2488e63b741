"""The command `ev2 prepare imagenet1k`."""

from ev2.cli import flags
from ev2.cli.commands import command
from ev2.cli.prepare import BEAM_FLAGS, run_beam


@command(
    "ev2 prepare imagenet1k --train=ILSVRC2012_img_train.tar "
    "--validation=ILSVRC2012_img_val.tar --devkit=ILSVRC2012_devkit_t12.tar.gz "
    "--out=data/imagenet1k",
    flags.string(
        "train",
        "ILSVRC2012_img_train.tar: uncompressed archive of class archives, or "
        "directory of them.",
    ),
    flags.string("validation", "ILSVRC2012_img_val.tar."),
    flags.string("devkit", "ILSVRC2012_devkit_t12.tar.gz: the classes of validation."),
    flags.integer(
        "minival_images", "Training images to hold out as split minival.", 25_000
    ),
    *BEAM_FLAGS,
)
def imagenet1k(values: flags.Values) -> None:
    """Writes the archives of ILSVRC2012 as shards: train, minival and validation."""
    from ev2.data.prepare import imagenet

    run_beam(
        values,
        imagenet.list_imagenet1k,
        train=values.train or "",
        validation=values.validation or "",
        devkit=values.devkit or "",
        minival_images=values.minival_images,
    )

"""Writes the archives of ILSVRC2012 as shards: train, minival and validation."""

from ev2.cli import flags, prepare

EXAMPLE = (
    "ev2 prepare imagenet1k --train=ILSVRC2012_img_train.tar "
    "--validation=ILSVRC2012_img_val.tar --devkit=ILSVRC2012_devkit_t12.tar.gz "
    "--out=data/imagenet1k"
)
FLAGS = (
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
    *prepare.BEAM_FLAGS,
)


def run(values: flags.Values) -> None:
    from ev2.data.prepare import imagenet

    prepare.run_beam(
        values,
        lambda: imagenet.list_imagenet1k(
            train=values.train or "",
            validation=values.validation or "",
            devkit=values.devkit or "",
            minival_images=values.minival_images,
        ),
    )

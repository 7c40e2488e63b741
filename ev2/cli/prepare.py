"""The `prepare` commands, which write a data set as shards, and the preview."""

import json
from collections.abc import Callable
from typing import Any

from ev2.cli import flags
from ev2.cli.commands import command

_BEAM_FLAGS = (
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
_OUT = flags.string("out", "Directory to write the shards to.", required=True)
_ARCHIVE = flags.string("archive", "Directory of the set's own files.", required=True)


def _run_beam(values: flags.Values, list_images: Callable, **options: Any) -> None:
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


def _show(values: flags.Values, manifest: dict[str, Any]) -> None:
    flags.show(values.json, manifest, json.dumps(manifest, indent=1))


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
    *_BEAM_FLAGS,
)
def imagenet1k(values: flags.Values) -> None:
    """Writes the archives of ILSVRC2012 as shards: train, minival and validation."""
    from ev2.data.prepare import imagenet

    _run_beam(
        values,
        imagenet.list_imagenet1k,
        train=values.train or "",
        validation=values.validation or "",
        devkit=values.devkit or "",
        minival_images=values.minival_images,
    )


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
    *_BEAM_FLAGS,
)
def imagenet21k(values: flags.Values) -> None:
    """Writes an archive of class archives as shards; duplicates become multi-label."""
    from ev2.data.prepare import imagenet

    options = flags.pick(values, "source", "validation_images")
    _run_beam(values, imagenet.list_imagenet21k, **options)


@command(
    "ev2 prepare folder --source=images --out=data/shards",
    flags.string(
        "source", "Directory of class directories, or of train and val.", required=True
    ),
    flags.number(
        "eval_fraction",
        "Fraction of each class to hold out as split validation, without val.",
        0.1,
    ),
    *_BEAM_FLAGS,
)
def folder(values: flags.Values) -> None:
    """Writes a directory of class directories as shards: train and validation."""
    from ev2.data.prepare import image_folder

    options = flags.pick(values, "source", "out", "eval_fraction")
    _run_beam(values, image_folder.list_folder, **options)


@command(
    "ev2 prepare fashion-mnist --source=fashion-mnist --out=data/fashion",
    flags.string("source", "Directory of the original files.", required=True),
    flags.integer("train_per_class", "Training images per class, to 6000.", 1200),
    flags.integer("eval_per_class", "Evaluation images per class, to 1000.", 200),
    *(_OUT, flags.JSON),
)
def fashion_mnist(values: flags.Values) -> None:
    """Writes the embedded shards again, or more images, from the original files."""
    from ev2.data.prepare import fashion_mnist

    counts = flags.pick(values, "train_per_class", "eval_per_class")
    write = fashion_mnist.prepare_fashion_mnist
    _show(values, write(values.source, values.out, **counts))


@command(
    "ev2 prepare flowers --archive=downloads --out=data/flowers",
    *(_ARCHIVE, _OUT, flags.JSON),
)
def flowers(values: flags.Values) -> None:
    """Writes Oxford's 102 flowers as shards: train, validation and test."""
    from ev2.data.prepare import flowers

    _show(values, flowers.prepare_flowers(values.archive, values.out))


@command(
    "ev2 prepare cars --archive=downloads --out=data/cars",
    *(_ARCHIVE, _OUT, flags.JSON),
)
def cars(values: flags.Values) -> None:
    """Writes Stanford's cars as shards: train and test."""
    from ev2.data.prepare import cars

    _show(values, cars.prepare_cars(values.archive, values.out))


@command(
    "ev2 prepare preview --config=configs/demo.py --out=preview.png",
    flags.RECIPE,
    flags.string("out", "PNG file to write.", required=True),
    flags.string("image", "Image to augment; a built-in one if not given."),
)
def preview(values: flags.Values) -> None:
    """Draws all augmentation operations by magnitude, as a PNG."""
    from ev2.data.augment import preview

    preview.write_preview(values.config, values.out, values.image or "")
    print(f"preview: {values.out}")

"""What `ev2 prepare DATASET` takes and does; the work is in `ev2.data.prepare`."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from ev2.cli import flags as verb

_CLASS_ARCHIVES = "uncompressed archive of class archives, or folder of them"


def _define_common(values: flags.FlagValues) -> None:
    """The flags of every dataset that is prepared with Beam."""
    verb.define_string(values, "out", "Folder to fill, local or gs://.", required=True)
    verb.define_string(values, "json", "File to write the manifest to as well.")
    flags.DEFINE_float(
        "shard_mb", 256.0, "About the size of a shard, 10**6 bytes.", flag_values=values
    )
    verb.define_string(values, "runner", "Beam's runner; the direct one if not given.")
    flags.DEFINE_integer(
        "workers", 0, "Threads of the direct runner; 0 = cores.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "beam",
        [],
        "Option of the runner without its dashes, such as project=NAME; repeatable.",
        flag_values=values,
    )


def _prepare(values: flags.FlagValues, make_listing: Callable[[], Any]) -> None:
    from ev2.data.prepare import beam, build

    options = beam.Options(
        runner=values.runner or beam.LOCAL,
        workers=values.workers,
        beam=tuple(values.beam),
    )
    beam.check(options)  # before the archives are read, which takes minutes
    manifest = build.prepare(
        make_listing(), values.out, shard_mb=values.shard_mb, options=options
    )
    if values.json:
        verb.write_json(values.json, manifest)
    print(build.format_result(manifest, values.out))


def _define_imagenet1k(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Flags of `prepare imagenet1k`."""
    del argv
    verb.define_string(values, "train", f"ILSVRC2012_img_train.tar: {_CLASS_ARCHIVES}.")
    verb.define_string(values, "validation", "ILSVRC2012_img_val.tar.")
    verb.define_string(
        values, "devkit", "ILSVRC2012_devkit_t12.tar.gz: validation's classes."
    )
    flags.DEFINE_integer(
        "minival_images",
        25_000,
        "Training pictures to hold out as split minival.",
        flag_values=values,
    )
    _define_common(values)


def _imagenet1k(values: flags.FlagValues) -> None:
    """Writes train, minival and validation."""
    from ev2.data.prepare import imagenet

    _prepare(
        values,
        lambda: imagenet.list_imagenet1k(
            train=values.train or "",
            validation=values.validation or "",
            devkit=values.devkit or "",
            minival_images=values.minival_images,
        ),
    )


def _define_imagenet21k(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Flags of `prepare imagenet21k`."""
    del argv
    verb.define_string(values, "source", f"The {_CLASS_ARCHIVES}.", required=True)
    flags.DEFINE_integer(
        "validation_images",
        100_000,
        "Pictures to hold out as split validation.",
        flag_values=values,
    )
    _define_common(values)


def _imagenet21k(values: flags.FlagValues) -> None:
    """Writes train and validation, equal pictures as one of several labels."""
    from ev2.data.prepare import imagenet

    _prepare(
        values,
        lambda: imagenet.list_imagenet21k(
            source=values.source, validation_images=values.validation_images
        ),
    )


def _define_folder(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Flags of `prepare folder`."""
    del argv
    help_text = "Folder of class folders, or of train and val."
    verb.define_string(values, "source", help_text, required=True)
    flags.DEFINE_float(
        "eval_fraction",
        0.1,
        "Share of each class to hold out as split validation, without val.",
        flag_values=values,
    )
    _define_common(values)


def _folder(values: flags.FlagValues) -> None:
    """Writes train and validation."""
    from ev2.data.prepare import image_folder

    _prepare(
        values,
        lambda: image_folder.list_folder(
            source=values.source, out=values.out, eval_fraction=values.eval_fraction
        ),
    )


def _define_fashion_mnist(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Flags of `prepare fashion-mnist`."""
    del argv
    verb.define_string(
        values, "source", "Folder with the original files.", required=True
    )
    for name, count, most in (("train", 1200, 6000), ("eval", 200, 1000)):
        flags.DEFINE_integer(
            f"{name}_per_class",
            count,
            f"Pictures of each class for it, at most {most}.",
            lower_bound=1,
            flag_values=values,
        )
    _define_out(values)


def _define_out(values: flags.FlagValues) -> None:
    """The flags of every dataset that is prepared without Beam."""
    verb.define_string(values, "out", "Folder to write the shards to.", required=True)
    verb.define_string(values, "json", "File to write the manifest to.")


def _fashion_mnist(values: flags.FlagValues) -> None:
    """Writes the embedded shards again, or more of them."""
    from ev2.data.prepare import fashion_mnist

    manifest = fashion_mnist.prepare_fashion_mnist(
        values.source,
        values.out,
        train_per_class=values.train_per_class,
        eval_per_class=values.eval_per_class,
    )
    _write_manifest(values, manifest)


def _define_archive(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Flags of `prepare flowers` and `prepare cars`."""
    del argv
    help_text = "Folder of the set's own files; what is missing is named."
    verb.define_string(values, "archive", help_text, required=True)
    _define_out(values)


def _flowers(values: flags.FlagValues) -> None:
    """Writes train, validation and test."""
    from ev2.data.prepare import flowers

    _write_manifest(values, flowers.prepare_flowers(values.archive, values.out))


def _cars(values: flags.FlagValues) -> None:
    """Writes train and test."""
    from ev2.data.prepare import cars

    _write_manifest(values, cars.prepare_cars(values.archive, values.out))


def _write_manifest(values: flags.FlagValues, manifest: dict[str, Any]) -> None:
    if values.json:
        verb.write_json(values.json, manifest)
    else:
        print(json.dumps(manifest, indent=1))


VERBS = {
    "prepare imagenet1k": verb.Verb(
        "ILSVRC2012's archives to shards", _define_imagenet1k, _imagenet1k
    ),
    "prepare imagenet21k": verb.Verb(
        "an archive of class archives to shards", _define_imagenet21k, _imagenet21k
    ),
    "prepare folder": verb.Verb(
        "a folder of class folders to shards", _define_folder, _folder
    ),
    "prepare fashion-mnist": verb.Verb(
        "the embedded shards, from the original files",
        _define_fashion_mnist,
        _fashion_mnist,
    ),
    "prepare flowers": verb.Verb(
        "Oxford's 102 flowers to shards", _define_archive, _flowers
    ),
    "prepare cars": verb.Verb("Stanford's cars to shards", _define_archive, _cars),
}

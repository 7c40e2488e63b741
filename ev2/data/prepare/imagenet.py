"""Lists the images of ImageNet's archives: names, byte offsets, classes.

Archives are read without unpacking, archives inside archives too; listing reads only
headers.
"""

import collections
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from ev2 import errors
from ev2.data import image_folder, imagenet_classes, storage, tar
from ev2.data.prepare import image_table, in_memory, listing
from ev2.data.tensorflow import tf

WORDNET_ID = re.compile(r"n\d{8}$")
VALIDATION_NAME = re.compile(r"_(\d{8})\.[A-Za-z]+$")
SYNSETS = "meta.mat"  # files of the development kit
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Published numbers of images and classes.
IMAGENET1K = {"train": 1_281_167, "validation": 50_000}
IMAGENET21K = {  # edition -> images, numbers of classes that are called so
    "winter21": (13_153_500, (19_167,)),
    "fall11": (14_197_122, (21_841, 21_842)),
}


class _DevKit(NamedTuple):
    """Content of the development kit of ILSVRC2012; classes are WordNet ids."""

    classes: tuple[str, ...]  # in the order of their numbers in the kit
    validation: tuple[str, ...]  # class of each validation image, by its number


class _Archive(NamedTuple):
    """One archive, perhaps inside another file."""

    name: str  # without folder and ".tar": the class
    path: str
    start: int = 0  # byte
    size: int | None = None  # bytes; None = the whole file


def list_imagenet1k(
    *, train: str, validation: str, devkit: str, minival_images: int
) -> listing.Listing:
    """Lists ILSVRC2012.

    Args:
        train: archive of class archives, or a folder of them; "" = without.
        validation: flat archive of the validation images; "" = without.
        devkit: archive of the development kit, with the validation classes.
        minival_images: number of training images to hold out.

    Raises:
        InputError: a file is missing or truncated, or does not fit another file.
    """
    if not train and not validation or bool(validation) != bool(devkit):
        raise errors.InputError(
            f"train, validation, devkit: {train!r}, {validation!r}, {devkit!r}; give"
            " train, or validation and devkit, or all three"
        )
    splits, left_out, classes, rule = {}, [], (), {}
    kit = _read_devkit(devkit) if devkit else None
    if train:
        archives, left_out = _find_class_archives("train", train)
        classes = tuple(archive.name for archive in archives)
        splits["train"] = _list_classes("train", archives, left_out)
    if kit:
        _check_devkit(devkit, kit, classes)
        classes = tuple(sorted(kit.classes))
        splits["validation"] = _list_validation(validation, kit, classes, left_out)
        rule["validation"] = "the official validation images"
    if train:
        rule["minival"] = f"the first {minival_images} of the training images"
        rule["train"] = "the other training images"
    paths = [path for path in (train, validation, devkit) if path]
    return listing.Listing(
        dataset="imagenet1k",
        classes=classes,
        synsets=True,
        splits=splits,
        held_out="minival" if train else "",
        held_out_images=minival_images if train else 0,
        held_out_flag="minival_images",
        sources=[listing.describe_source(path) for path in paths],
        left_out=left_out,
        rule=rule | {"order": listing.ORDER},
        notes=_compare_imagenet1k(splits, classes),
    )


def _compare_imagenet1k(
    splits: dict[str, image_table.ImageTable], classes: tuple[str, ...]
) -> list[str]:
    """Returns the differences from the published archives, in words."""
    notes = [
        f"{split} has {len(splits[split]):,} images; ILSVRC2012 has {count:,}"
        for split, count in IMAGENET1K.items()
        if split in splits and len(splits[split]) != count
    ]
    if classes != tuple(row.id for row in imagenet_classes.imagenet1k()):
        notes.append(f"the {len(classes):,} classes are not the 1,000 of ILSVRC2012")
    return notes


def list_imagenet21k(*, source: str, validation_images: int) -> listing.Listing:
    """Lists ImageNet21k from an archive of class archives, or a folder of them.

    Raises:
        InputError: see `list_imagenet1k`.
    """
    archives, left_out = _find_class_archives("source", source)
    classes = tuple(archive.name for archive in archives)
    images = _list_classes("source", archives, left_out)
    published = [(n, c) for n, counts in IMAGENET21K.values() for c in counts]
    notes = []
    if (len(images), len(classes)) not in published:
        editions = "; ".join(
            f"{name} has {n:,} in {' or '.join(f'{c:,}' for c in counts)}"
            for name, (n, counts) in IMAGENET21K.items()
        )
        notes.append(f"{len(images):,} images in {len(classes):,} classes; {editions}")
    return listing.Listing(
        dataset="imagenet21k",
        classes=classes,
        synsets=True,
        splits={"train": images},
        held_out="validation",
        held_out_images=validation_images,
        held_out_flag="validation_images",
        merge=True,
        sources=[listing.describe_source(source)],
        left_out=left_out,
        rule={
            "merge": "images with the same bytes are one, with all their labels",
            "validation": f"the first {validation_images} images",
            "train": "the other images",
            "order": listing.ORDER,
        },
        notes=notes,
    )


def _find_class_archives(
    key: str, path: str
) -> tuple[list[_Archive], list[dict[str, str]]]:
    """Returns the archives of classes, by name, and the other files beside them."""
    entries: list[tuple[Any, ...]]
    if tf.io.gfile.isdir(path):
        entries = [
            (name, os.path.join(path, name)) for name in storage.list_names(path)
        ]
    else:
        entries = [
            (os.path.basename(member.name), path, member.offset_data, member.size)
            for member in _walk(key, _Archive(path, path))
            if member.isreg()
        ]
    archives, others = [], []
    for name, *place in entries:
        archive = _Archive(name.removesuffix(".tar"), *place)
        if WORDNET_ID.match(archive.name):
            archives.append(archive)
        else:
            others.append({"name": archive.name, "reason": "not an archive of a class"})
    counts = collections.Counter(archive.name for archive in archives)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if len(archives) < 2 or twice:
        problem = f"two archives of {twice[0]}" if twice else f"{len(archives)} classes"
        raise errors.InputError(
            f"{key}: {path!r} holds {problem}; give an archive or a folder of archives,"
            " one per class and called by its WordNet id, such as n01440764.tar"
        )
    return sorted(archives, key=lambda archive: archive.name), others


def _walk(key: str, archive: _Archive) -> Iterable:
    """Yields the members of an archive; raises InputError if it cannot be read."""
    try:
        yield from tar.walk(archive.path, archive.start, archive.size)
    except (FileNotFoundError, tf.errors.NotFoundError):
        raise errors.InputError(f"{key}: {archive.path!r} does not exist") from None
    except storage.ERRORS as error:
        if archive.size is None and _is_gzip(archive.path):
            raise errors.InputError(
                f"{key}: {archive.path!r} is compressed and cannot be read by"
                f" position; unpack it first: gunzip {archive.path}"
            ) from None
        inside = f" in {archive.path!r}" if archive.size is not None else ""
        raise errors.InputError(
            f"{key}: the archive {archive.name!r}{inside} is truncated, compressed or"
            f" not a tar archive ({error}); fetch it again"
        ) from None


def _is_gzip(path: str) -> bool:
    try:
        with storage.open_file(path) as file:
            return file.read(2) == b"\x1f\x8b"
    except storage.ERRORS:
        return False


def _list_classes(
    key: str, archives: Sequence[_Archive], left_out: list[dict[str, str]]
) -> image_table.ImageTable:
    """Returns the images of all classes; adds other files to `left_out`."""
    parts = []
    bar = tqdm.tqdm(archives, "reading headers", unit="class", disable=None)
    for label, archive in enumerate(bar):
        rows, others = _list_images(key, archive)
        left_out += others
        located = [(0, *row, label) for row in rows]
        parts.append(image_table.from_rows([archive.path], located))
    joined = image_table.join(parts)
    if not len(joined):
        raise errors.InputError(f"{key}: the archives hold no images")
    return joined


def _list_images(
    key: str, archive: _Archive
) -> tuple[list[tuple[int, int, str]], list[dict[str, str]]]:
    """Returns offset, size and file name of the images; and the other members."""
    rows, others = {}, []
    for member in _walk(key, archive):
        name = os.path.basename(member.name)
        reason = _other_reason(member, name)
        if not reason:
            path = os.path.normpath(member.name)
            if path in rows:  # the last of equal names counts, as in unpacking
                others.append({"name": member.name, "reason": "replaced further on"})
            rows[path] = (member.offset_data, member.size, name)
        elif not member.isdir():
            inside = f"{os.path.basename(archive.name)}/{member.name}"
            others.append({"name": inside, "reason": reason})
    return list(rows.values()), others


def _other_reason(member: Any, name: str) -> str:
    """Returns the reason to leave a member out; "" for an image, whatever its bytes."""
    if not member.isreg() or member.issparse():
        return "not a plain file"
    if not image_folder.is_image_name(name):
        return "not an image by its name"
    return "" if member.size else "empty"


def _read_devkit(path: str) -> _DevKit:
    """Reads the kit; it numbers the classes from 1, and broader synsets after them."""
    hint = "give ILSVRC2012_devkit_t12.tar.gz"
    content = dict(in_memory.read_members("devkit", path, (SYNSETS, TRUTH)))
    for name in (SYNSETS, TRUTH):
        if name not in content:
            raise errors.InputError(f"devkit: {path!r} lacks {name!r}; {hint}")
    table = in_memory.load_matlab("devkit", path, io.BytesIO(content[SYNSETS]))
    try:
        synsets = {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in np.atleast_1d(table["synsets"])
            if int(row["num_children"]) == 0
        }
        numbers = [int(line) for line in content[TRUTH].split()]
        validation = tuple(synsets[number] for number in numbers)
    except (LookupError, TypeError, ValueError) as error:
        raise errors.InputError(
            f"devkit: cannot read {path!r} ({error!r}); {hint}"
        ) from None
    return _DevKit(tuple(synsets.values()), validation)


def _check_devkit(path: str, kit: _DevKit, classes: tuple[str, ...]) -> None:
    differ = sorted(set(kit.classes) ^ set(classes))
    if classes and differ:
        raise errors.InputError(
            f"devkit: {path!r} has {len(kit.classes)} classes and the training archives"
            f" {len(classes)}; they differ in {differ[0]!r} and"
            f" {len(differ) - 1} more; give the kit of the same challenge"
        )


def _list_validation(
    path: str, kit: _DevKit, classes: tuple[str, ...], left_out: list[dict[str, str]]
) -> image_table.ImageTable:
    """Lists the validation images; a number is a line of the kit's ground truth."""
    rows, others = _list_images("validation", _Archive(path, path))
    left_out += others
    label_of = {name: i for i, name in enumerate(classes)}
    located, seen = [], set()
    for offset, size, name in rows:
        match = VALIDATION_NAME.search(name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(kit.validation):
            raise errors.InputError(
                f"validation: {name!r} of {path!r} is not one of the"
                f" {len(kit.validation)} images of the devkit"
                " (ILSVRC2012_val_00000001.JPEG...); give the archives of one challenge"
            )
        seen.add(number)
        label = label_of[kit.validation[number - 1]]
        located.append((0, offset, size, name, label))
    if len(seen) != len(kit.validation) or len(rows) != len(seen):
        raise errors.InputError(
            f"validation: {path!r} has {len(rows)} images and the devkit the classes"
            f" of {len(kit.validation)}; give the archives of one challenge"
        )
    return image_table.from_rows([path], located)

"""The pictures of ImageNet's archives: names, places, classes.

Archives are read where they lie, inner ones too; only headers are read here.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import tqdm

from ev2 import errors
from ev2.data import image_folder as folder
from ev2.data import imagenet_classes, tar
from ev2.data import storage as files
from ev2.data.prepare import devkits, image_table, listing
from ev2.data.tensorflow import tf

WORDNET_ID = re.compile(r"n\d{8}$")
VALIDATION_NAME = re.compile(r"_(\d{8})\.[A-Za-z]+$")
# Pictures and classes of what is published.
IMAGENET1K = {"train": 1_281_167, "validation": 50_000}
IMAGENET21K = {  # edition -> pictures, numbers of classes that are called so
    "winter21": (13_153_500, (19_167,)),
    "fall11": (14_197_122, (21_841, 21_842)),
}


@dataclasses.dataclass(frozen=True)
class _Archive:
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
        validation: flat archive of the validation pictures; "" = without.
        devkit: archive of the development kit, which tells their classes.
        minival_images: pictures of `train` to hold out.

    Raises:
        InputError: something is missing, cut, or does not fit the rest.
    """
    if not train and not validation or bool(validation) != bool(devkit):
        raise errors.InputError(
            f"train, validation, devkit: {train!r}, {validation!r}, {devkit!r}; give"
            " train, or validation and devkit, or all three"
        )
    splits, left_out, classes = {}, [], ()
    kit = devkits.read(devkit) if devkit else None
    if train:
        archives, left_out = _find_class_archives("train", train)
        classes = tuple(archive.name for archive in archives)
        splits["train"] = _list_classes("train", archives, left_out)
    if kit:
        _check_devkit(devkit, kit, classes)
        classes = tuple(sorted(kit.classes))
        splits["validation"] = _list_validation(validation, kit, classes, left_out)
    rule = {"validation": "the official validation pictures"} if validation else {}
    if train:
        rule["minival"] = f"the first {minival_images} of the training pictures"
        rule["train"] = "the other training pictures"
    return listing.Listing(
        dataset="imagenet1k",
        classes=classes,
        synsets=True,
        splits=splits,
        held_out="minival" if train else "",
        held_out_images=minival_images if train else 0,
        held_out_flag="minival_images",
        sources=[
            listing.describe_source(path)
            for path in (train, validation, devkit)
            if path
        ],
        left_out=left_out,
        rule=rule | {"order": listing.ORDER},
        notes=_compare_imagenet1k(splits, classes),
    )


def _compare_imagenet1k(
    splits: dict[str, image_table.ImageTable], classes: tuple[str, ...]
) -> list[str]:
    """What is other than in the published archives, in words."""
    notes = [
        f"{split} has {len(splits[split]):,} pictures; ILSVRC2012 has {count:,}"
        for split, count in IMAGENET1K.items()
        if split in splits and len(splits[split]) != count
    ]
    if classes != tuple(row.id for row in imagenet_classes.imagenet1k()):
        notes.append(f"the {len(classes):,} classes are not the 1,000 of ILSVRC2012")
    return notes


def list_imagenet21k(*, source: str, validation_images: int) -> listing.Listing:
    """Lists ImageNet21k from an archive of class archives, or a folder of them.

    Raises:
        InputError: as `list_imagenet1k`.
    """
    archives, left_out = _find_class_archives("source", source)
    classes = tuple(archive.name for archive in archives)
    found = _list_classes("source", archives, left_out)
    published = [(n, c) for n, counts in IMAGENET21K.values() for c in counts]
    notes = []
    if (len(found), len(classes)) not in published:
        known = "; ".join(
            f"{name} has {n:,} in {' or '.join(f'{c:,}' for c in counts)}"
            for name, (n, counts) in IMAGENET21K.items()
        )
        notes.append(f"{len(found):,} pictures in {len(classes):,} classes; {known}")
    return listing.Listing(
        dataset="imagenet21k",
        classes=classes,
        synsets=True,
        splits={"train": found},
        held_out="validation",
        held_out_images=validation_images,
        held_out_flag="validation_images",
        merge=True,
        sources=[listing.describe_source(source)],
        left_out=left_out,
        rule={
            "merge": "pictures with the same bytes are one, with all their labels",
            "validation": f"the first {validation_images} pictures",
            "train": "the others",
            "order": listing.ORDER,
        },
        notes=notes,
    )


def _find_class_archives(
    key: str, path: str
) -> tuple[list[_Archive], list[dict[str, str]]]:
    """The archives of classes, by name, and what else was found beside them."""
    found, others = [], []
    if tf.io.gfile.isdir(path):
        for name in files.list_names(path):
            inside = os.path.join(path, name)
            found.append(_Archive(name.removesuffix(".tar"), inside))
    else:
        for member in _walk(key, _Archive(path, path)):
            name = os.path.basename(member.name)
            if member.isreg():
                archive = _Archive(
                    name.removesuffix(".tar"), path, member.offset_data, member.size
                )
                found.append(archive)
    for archive in list(found):
        if not WORDNET_ID.match(archive.name):
            found.remove(archive)
            others.append({"name": archive.name, "reason": "no archive of a class"})
    names = [archive.name for archive in found]
    twice = sorted(n for n, count in collections.Counter(names).items() if count > 1)
    if len(found) < 2 or twice:
        problem = f"two archives of {twice[0]}" if twice else f"{len(found)} classes"
        raise errors.InputError(
            f"{key}: {path!r} holds {problem}; give an archive or a folder of archives,"
            " one per class and called by its WordNet id, such as n01440764.tar"
        )
    return sorted(found, key=lambda archive: archive.name), others


def _walk(key: str, archive: _Archive) -> Iterable:
    """Members of an archive. Raises InputError if it is no whole one."""
    try:
        yield from tar.walk(archive.path, archive.start, archive.size)
    except (FileNotFoundError, tf.errors.NotFoundError):
        raise errors.InputError(f"{key}: {archive.path!r} does not exist") from None
    except (OSError, tf.errors.OpError) as error:
        if archive.size is None and _is_gzip(archive.path):
            raise errors.InputError(
                f"{key}: {archive.path!r} is compressed and cannot be read by"
                f" position; unpack it first: gunzip {archive.path}"
            ) from None
        inside = f" in {archive.path!r}" if archive.size is not None else ""
        raise errors.InputError(
            f"{key}: the archive {archive.name!r}{inside} is cut, compressed or no tar"
            f" archive ({error}); fetch it again"
        ) from None


def _is_gzip(path: str) -> bool:
    try:
        with files.open_file(path) as file:
            return file.read(2) == b"\x1f\x8b"
    except (OSError, tf.errors.OpError):
        return False


def _list_classes(
    key: str, archives: Sequence[_Archive], left_out: list[dict[str, str]]
) -> image_table.ImageTable:
    """The pictures of all classes; what is no picture goes to `left_out`."""
    parts = []
    for label, archive in enumerate(
        tqdm.tqdm(archives, "reading headers", unit="class", disable=None)
    ):
        rows, others = _list_pictures(key, archive)
        left_out += others
        parts.append(
            image_table.from_rows([archive.path], [(0, *row, label) for row in rows])
        )
    joined = image_table.join(parts)
    if not len(joined):
        raise errors.InputError(f"{key}: the archives hold no pictures")
    return joined


def _list_pictures(
    key: str, archive: _Archive
) -> tuple[list[tuple[int, int, str]], list[dict[str, str]]]:
    """Offset, size and file name of the pictures; and what is none."""
    rows, others = {}, []
    for member in _walk(key, archive):
        name = os.path.basename(member.name)
        reason = _why_no_picture(member, name)
        if not reason:
            place = os.path.normpath(member.name)
            if place in rows:  # of equal names an archive means the last
                others.append({"name": member.name, "reason": "replaced further on"})
            rows[place] = (member.offset_data, member.size, name)
        elif not member.isdir():
            inside = f"{os.path.basename(archive.name)}/{member.name}"
            others.append({"name": inside, "reason": reason})
    return list(rows.values()), others


def _why_no_picture(member: Any, name: str) -> str:
    """Why a member is left out; "" for a picture, whatever its bytes are."""
    if not member.isreg() or member.issparse():
        return "no plain file"
    if name.startswith(".") or not name.lower().endswith(folder.EXTENSIONS):
        return "no picture by its name"
    return "" if member.size else "empty"


def _check_devkit(path: str, kit: devkits.Devkit, classes: tuple[str, ...]) -> None:
    differ = sorted(set(kit.classes) ^ set(classes))
    if classes and differ:
        raise errors.InputError(
            f"devkit: {path!r} has {len(kit.classes)} classes and the training archives"
            f" {len(classes)}; they differ in {differ[0]!r} and"
            f" {len(differ) - 1} more; give the kit of the same challenge"
        )


def _list_validation(
    path: str,
    kit: devkits.Devkit,
    classes: tuple[str, ...],
    left_out: list[dict[str, str]],
) -> image_table.ImageTable:
    """The validation pictures, whose numbers are lines of the kit's ground truth."""
    rows, others = _list_pictures("validation", _Archive(path, path))
    left_out += others
    number = {name: i for i, name in enumerate(classes)}
    labelled, seen = [], set()
    for offset, size, name in rows:
        match = VALIDATION_NAME.search(name)
        line = int(match[1]) if match else 0
        if not 1 <= line <= len(kit.validation):
            raise errors.InputError(
                f"validation: {name!r} of {path!r} is not one of the"
                f" {len(kit.validation)} pictures of the devkit"
                " (ILSVRC2012_val_00000001.JPEG...); give the archives of one challenge"
            )
        seen.add(line)
        labelled.append((0, offset, size, name, number[kit.validation[line - 1]]))
    if len(seen) != len(kit.validation) or len(rows) != len(seen):
        raise errors.InputError(
            f"validation: {path!r} has {len(rows)} pictures and the devkit the classes"
            f" of {len(kit.validation)}; give the archives of one challenge"
        )
    return image_table.from_rows([path], labelled)

"""Opens users' own images: a folder of class folders, a CSV list or a tar archive.

`data.path` is one folder of classes, list or archive, or a folder with one for each
split, such as `train` beside `val` or `train.csv` beside `val.csv`.
"""

import csv
import functools
import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ev2 import errors
from ev2.data import image_folder, storage, tar

KINDS = ("folder", "csv", "tar")
EVAL_NAMES = ("val", "validation", "test")  # beside the configured name
_COLUMNS = ("path", "label")


class _ImageList(NamedTuple):
    rows: list[tuple[str, str]]  # name of each image, name of its class
    read: Callable[[str], bytes]  # name -> encoded image
    display: Callable[[str], str]  # name -> location, for messages


class ListedImages:
    """One split of a folder, list or archive, or "all" of an undivided one.

    Classes are numbered in the order of their names. Images are in the order of the
    list or archive; a folder's are sorted by class and path. See `sources.Source`.

    Without a part for each split, a fraction `eval_fraction` of each class is held
    out: images are sorted by a hash of their name, and the first ones go to evaluation
    (at least one where the class has two). The choice depends on the names alone, so
    it is the same on every machine.
    """

    def __init__(
        self, kind: str, path: str, split: str, split_name: str, eval_fraction: float
    ):
        if storage.is_remote(path):
            raise errors.InputError(
                f"data.path: {path!r} is remote; data.source {kind!r} must be local"
            )
        parts = find_splits(kind, path, split, split_name)
        if parts and split == "all":
            raise errors.InputError(
                f"split: 'all' of {path!r}, which has {' and '.join(parts.values())};"
                " choose eval or train, or give one of the two as data.path"
            )
        self._listing = _LISTERS[kind](parts["train"] if parts else path)
        self.class_names = _class_names(path, self._listing.rows)
        if parts and split == "eval":
            self._listing = _LISTERS[kind](parts["eval"])
            _check_classes(parts["eval"], self._listing.rows, self.class_names)
        rows = self._listing.rows
        if not parts and split != "all":
            rows = _hold_out(rows, split, eval_fraction)
        if not rows:
            raise errors.InputError(
                f"data.path: no images left for {split!r} in {path!r}; give more, or"
                f" change data.eval_fraction ({eval_fraction}); to evaluate all images,"
                " --split=all"
            )
        self._names = [name for name, _ in rows]
        number = {name: i for i, name in enumerate(self.class_names)}
        self._labels = np.array([number[label] for _, label in rows], np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """See `sources.Source.read`."""
        names = [self._names[i] for i in indices]
        encoded = storage.map_parallel(self._listing.read, names)
        return encoded, self._labels[indices]

    def name(self, index: int) -> str:
        """Returns the path, or the list or archive and the name in it."""
        return self._listing.display(self._names[index])

    def rows(self) -> list[tuple[str, int]]:
        """Returns the name in the folder, list or archive, and class of each image."""
        return list(zip(self._names, self._labels.tolist(), strict=True))


def find_splits(
    kind: str, path: str, split: str, split_name: str
) -> dict[str, str] | None:
    """Returns the paths of "train" and "eval"; None if `path` is undivided.

    Both must exist, because a folder alone may be a class that is called "train".

    Args:
        kind: one of `KINDS`.
        path: the folder, list or archive.
        split: split whose configured name is `split_name`: "train" or another.
        split_name: `data.train_split` or `data.eval_split`.

    Raises:
        InputError: `path` is neither a file nor a folder of both files, or lacks the
            configured training folder.
    """
    is_folder = kind == "folder"
    exists = os.path.isdir if is_folder else os.path.isfile
    if not is_folder and os.path.isfile(path):
        return None

    def locate(name: str) -> str:
        return os.path.join(path, name if is_folder else f"{name}.{kind}")

    train = locate(split_name if split == "train" else "train")
    for name in EVAL_NAMES if split == "train" else (split_name, *EVAL_NAMES):
        if exists(train) and exists(locate(name)):
            return {"train": train, "eval": locate(name)}
    if not is_folder:
        raise errors.InputError(
            f"data.path: {path!r} is not a file and lacks {os.path.basename(train)}"
            f" beside {EVAL_NAMES[0]}.{kind}; give one {kind} file, or such a folder"
        )
    if split == "train" and exists(locate("train")) and exists(locate("val")):
        raise errors.InputError(
            f"data.train_split: {split_name!r} is not a folder of {path!r}, which has"
            " train and val"
        )
    return None


def _list_folder(path: str) -> _ImageList:
    locate = functools.partial(os.path.join, path)
    rows = image_folder.list_folder(path)
    return _ImageList(rows, lambda name: image_folder.read_image(locate(name)), locate)


def _list_csv(path: str) -> _ImageList:
    """Reads a CSV file with columns "path", relative to its folder, and "label"."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not set(_COLUMNS) <= set(columns):
                raise errors.InputError(
                    f"data.path: {path!r} has columns {', '.join(columns) or 'none'}; "
                    f"its first line must name {' and '.join(_COLUMNS)}"
                )
            rows = [(row["path"], row["label"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise errors.InputError(f"data.path: cannot read {path!r}: {error}") from None
    for line, row in enumerate(rows, start=2):
        if not all(row):
            raise errors.InputError(
                f"data.path: row {line} of {path!r} has no {_COLUMNS[bool(row[0])]}; "
                "give both in every row"
            )
    home = os.path.dirname(path)
    return _ImageList(
        rows,
        lambda name: image_folder.read_image(os.path.join(home, name)),
        lambda name: f"{path} {name}",
    )


def _list_tar(path: str) -> _ImageList:
    """Reads the headers of a tar archive; its images are in class folders.

    A folder that contains all images is not a class.
    """
    ranges = {}
    try:
        for member in tar.walk(path):
            name = os.path.normpath(member.name)
            hidden = any(part.startswith(".") for part in name.split("/"))
            if member.isreg() and image_folder.is_image_name(name) and not hidden:
                ranges[name] = (0, member.offset_data, member.size)
    except OSError as error:
        raise errors.InputError(
            f"data.path: {path!r} is truncated, compressed or not a tar archive"
            f" ({error}); give an uncompressed one"
        ) from None
    folders = [name.split("/")[:-1] for name in ranges]
    depth = len(os.path.commonprefix(folders))
    for name, inside in zip(ranges, folders, strict=True):
        if len(inside) <= depth:
            raise errors.InputError(
                f"data.path: {name!r} of {path!r} is not in a class folder, or all"
                " images are in one; put images into at least two folders"
            )
    reader = storage.Reader([path])
    return _ImageList(
        [(n, inside[depth]) for n, inside in zip(ranges, folders, strict=True)],
        lambda name: reader.read(*ranges[name]),
        lambda name: f"{path} {name}",
    )


_LISTERS = {"folder": _list_folder, "csv": _list_csv, "tar": _list_tar}


def _class_names(path: str, rows: list[tuple[str, str]]) -> tuple[str, ...]:
    classes = sorted({label for _, label in rows})
    if len(classes) < 2:
        found = f"one class, {classes[0]!r}" if classes else "no images"
        raise errors.InputError(
            f"data.path: {path!r} has {found}; give images of at least two classes"
        )
    return tuple(classes)


def _check_classes(
    path: str, rows: list[tuple[str, str]], class_names: tuple[str, ...]
) -> None:
    unknown = sorted({label for _, label in rows} - set(class_names))
    if unknown:
        raise errors.InputError(
            f"data.path: {path!r} has the class {unknown[0]!r}, which the training"
            " images lack; both must have the same classes"
        )


def _hold_out(
    rows: list[tuple[str, str]], split: str, eval_fraction: float
) -> list[tuple[str, str]]:
    """Returns the rows of "train" or "eval", in their order."""
    if not 0.0 < eval_fraction < 1.0:
        raise errors.InputError(
            f"data.eval_fraction: {eval_fraction}; allowed is a number between 0 and 1"
        )
    by_class: dict[str, list[str]] = {}
    for name, label in rows:
        by_class.setdefault(label, []).append(name)
    held_out = set()
    for label, names in by_class.items():
        count = min(max(1, round(eval_fraction * len(names))), len(names) - 1)
        held_out |= {(name, label) for name in sorted(names, key=_name_hash)[:count]}
    return [row for row in rows if (row in held_out) == (split == "eval")]


def _name_hash(name: str) -> bytes:
    return hashlib.sha256(name.replace(os.sep, "/").encode()).digest()

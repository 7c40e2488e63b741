"""Pictures by a list: a CSV file of paths and labels, or a tar of class folders.

`data.path` is one file, of which a share of each class is held out as of a folder, or a
folder with a file for each split, such as `train.csv` beside `val.csv`.
"""

import csv
import os
from collections.abc import Callable, Sequence

import numpy as np

from ev2 import errors
from ev2.data import image_folder as folder
from ev2.data import storage as files
from ev2.data import tar

KINDS = ("csv", "tar")
_COLUMNS = ("path", "label")
# A picture's name and its label; and how pictures are read, by name.
_Listing = tuple[list[tuple[str, str]], Callable[[Sequence[str]], list[bytes]]]


class ListedSource:
    """One split of a list of pictures, or "all" of one that has no splits.

    Classes are numbered in the order of their names, pictures as they are listed. See
    `source.Source`.
    """

    def __init__(
        self, kind: str, path: str, split: str, split_name: str, eval_fraction: float
    ):
        if files.is_remote(path):
            raise errors.InputError(
                f"data.path: {path!r} is remote; data.source {kind!r} must be local"
            )
        parts = _split_files(kind, path, split, split_name)
        read_listing = _read_csv if kind == "csv" else _read_tar
        rows, read = read_listing(parts["train"] if parts else path)
        self.class_names = _class_names(path, rows)
        if parts and split == "all":
            raise errors.InputError(
                f"split: 'all' of {path!r}, which has {' and '.join(parts.values())};"
                " choose eval or train, or give one of the two as data.path"
            )
        if parts and split == "eval":
            rows, read = read_listing(parts["eval"])
            _check_known(parts["eval"], rows, self.class_names)
        elif not parts and split != "all":
            rows = _hold_out(rows, split, eval_fraction)
        if not rows:
            raise errors.InputError(
                f"data.path: no pictures left for {split!r} in {path!r}; give more, or"
                f" change data.eval_fraction ({eval_fraction})"
            )
        self._file = parts[split] if parts else path
        self._names = [name for name, _ in rows]
        number = {name: i for i, name in enumerate(self.class_names)}
        self._labels = np.array([number[label] for _, label in rows], np.int32)
        self._read = read

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Encoded pictures, b"" where a listed file is missing, and labels."""
        return self._read([self._names[i] for i in indices]), self._labels[indices]

    def name(self, index: int) -> str:
        """The list or archive, and the picture's name in it."""
        return f"{self._file} {self._names[index]}"


def has_splits(kind: str, path: str, eval_name: str) -> bool:
    """Whether `path` holds a file to train on beside one to evaluate on."""
    return _split_files(kind, path, "eval", eval_name) is not None


def _split_files(
    kind: str, path: str, split: str, split_name: str
) -> dict[str, str] | None:
    """Files of "train" and "eval" if `path` is a folder of both; None if it is a file.

    Raises:
        InputError: if it is neither.
    """
    if os.path.isfile(path):
        return None
    train = split_name if split == "train" else "train"
    evals = folder.EVAL_FOLDERS if split == "train" else (split_name,)
    for name in dict.fromkeys((*evals, *folder.EVAL_FOLDERS)):
        pair = [os.path.join(path, f"{stem}.{kind}") for stem in (train, name)]
        if all(map(os.path.isfile, pair)):
            return dict(zip(("train", "eval"), pair, strict=True))
    raise errors.InputError(
        f"data.path: {path!r} is no file and holds no {train}.{kind} beside"
        f" {folder.EVAL_FOLDERS[0]}.{kind}; give one {kind} file, or such a folder"
    )


def _read_csv(path: str) -> _Listing:
    """Rows of a CSV file with columns "path", from its own folder on, and "label"."""
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

    def read_one(name: str) -> bytes:
        return folder.read_picture(os.path.join(home, name))

    return rows, lambda names: files.map_parallel(read_one, names)


def _read_tar(path: str) -> _Listing:
    """Members of a tar archive below folders of classes, and their places in it.

    Folders that hold all pictures are no classes. The headers are walked at every
    start; the pictures are then read where they lie, in any order.
    """
    places = {}
    try:
        for member in tar.walk(path):
            name = os.path.normpath(member.name)
            hidden = any(part.startswith(".") for part in name.split("/"))
            picture = name.lower().endswith(folder.EXTENSIONS)
            if member.isreg() and picture and not hidden:
                places[name] = (0, member.offset_data, member.size)
    except OSError as error:
        raise errors.InputError(
            f"data.path: {path!r} is cut, compressed or no tar archive ({error}); give"
            " an uncompressed one"
        ) from None
    folders = [name.split("/")[:-1] for name in places]
    depth = len(os.path.commonprefix(folders))
    for name, inside in zip(places, folders, strict=True):
        if len(inside) <= depth:
            raise errors.InputError(
                f"data.path: {name!r} of {path!r} is in no folder of a class, or all"
                " pictures are in one; put pictures into at least two folders"
            )
    rows = [(n, inside[depth]) for n, inside in zip(places, folders, strict=True)]
    reader = files.Reader([path])

    def read_one(name: str) -> bytes:
        return reader.read(*places[name])

    return rows, lambda names: files.map_parallel(read_one, names)


def _class_names(path: str, rows: list[tuple[str, str]]) -> tuple[str, ...]:
    classes = sorted({label for _, label in rows})
    if len(classes) < 2:
        found = f"one class, {classes[0]!r}" if classes else "no pictures"
        raise errors.InputError(
            f"data.path: {path!r} has {found}; give pictures of at least two classes"
        )
    return tuple(classes)


def _check_known(
    path: str, rows: list[tuple[str, str]], class_names: tuple[str, ...]
) -> None:
    unknown = sorted({label for _, label in rows} - set(class_names))
    if unknown:
        raise errors.InputError(
            f"data.path: {path!r} has the class {unknown[0]!r}, which the training list"
            " lacks; both must have the same classes"
        )


def _hold_out(
    rows: list[tuple[str, str]], split: str, eval_fraction: float
) -> list[tuple[str, str]]:
    """The rows of a split, in their order; classes are cut as those of a folder."""
    by_class: dict[str, list[str]] = {}
    for name, label in rows:
        by_class.setdefault(label, []).append(name)
    kept = {
        label: set(folder.hold_out(names, eval_fraction)[split])
        for label, names in by_class.items()
    }
    return [(name, label) for name, label in rows if name in kept[label]]

"""A folder with one folder of pictures per class, as people keep their own pictures.

`DIR/CLASS/.../PICTURE`, or `DIR/train/CLASS/...` beside `DIR/val/CLASS/...`. Classes
are numbered in the order of their names, pictures in the order of their paths.
"""

import hashlib
import os

import numpy as np

from ev2 import errors
from ev2.data import storage as files

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
EVAL_FOLDERS = ("val", "validation", "test")  # beside the configured name


class FolderSource:
    """One split of a folder of class folders, or "all" of one that has no splits.

    Without a folder for each split, a share `eval_fraction` of each class is held
    out: the pictures are put in the order of a hash of their path inside the
    folder, and the first ones go to evaluation (at least one where the class has
    two). The choice depends on the names alone, so it is the same on every machine.
    """

    def __init__(self, path: str, split: str, split_name: str, eval_fraction: float):
        if files.is_remote(path):
            raise errors.InputError(
                f"data.path: {path!r} is remote; a folder source must be a local folder"
            )
        if not os.path.isdir(path):
            raise errors.InputError(f"data.path: {path!r} is not a folder")
        folders = _split_folders(path, split, split_name)
        root = folders["train"] if folders else path
        self.class_names = tuple(_class_names(root))
        by_class = [_pictures(root, name) for name in self.class_names]
        if folders and split == "all":
            raise errors.InputError(
                f"split: 'all' of {path!r}, which has {' and '.join(folders.values())};"
                " choose eval or train, or give one of the two as data.path"
            )
        if folders and split == "eval":
            root = folders["eval"]
            by_class = _eval_pictures(root, self.class_names)
        elif not folders and split != "all":
            by_class = [hold_out(found, eval_fraction)[split] for found in by_class]
        self._root = root
        self._pictures = [picture for found in by_class for picture in found]
        self._labels = np.repeat(
            np.arange(len(by_class), dtype=np.int32), [len(found) for found in by_class]
        )
        if not self._pictures:
            raise errors.InputError(
                f"data.path: no pictures left for {split!r} in {path!r}; give more, or"
                f" change data.eval_fraction ({eval_fraction}); to evaluate every"
                " picture of the folder, --split=all"
            )

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """See `source.Source.read`."""
        paths = [self.name(i) for i in indices]
        return files.map_parallel(read_picture, paths), self._labels[indices]

    def name(self, index: int) -> str:
        """Path of the picture."""
        return os.path.join(self._root, self._pictures[index])

    def pictures(self) -> list[tuple[str, int]]:
        """Path inside the folder, and class, of each picture in order."""
        return list(zip(self._pictures, self._labels.tolist(), strict=True))


def read_picture(path: str) -> bytes:
    """The file; b"" where there is none or it may not be read.

    It is then counted and named as a corrupt picture is.

    Raises:
        InputError: the storage fails.
    """
    try:
        return files.read_file(path)
    except (FileNotFoundError, PermissionError):
        return b""
    except OSError as error:
        raise errors.InputError(f"data.path: cannot read {error}") from None


def has_splits(path: str, eval_name: str) -> bool:
    """Whether `path` holds a folder to train on beside one to evaluate on."""
    return _split_folders(path, "eval", eval_name) is not None


def _split_folders(path: str, split: str, split_name: str) -> dict[str, str] | None:
    """Folders of "train" and "eval" if `path` has both, else None.

    Both are asked for, because a folder alone may be a class that is called "train".
    """
    train_name = split_name if split == "train" else "train"
    eval_names = EVAL_FOLDERS if split == "train" else (split_name, *EVAL_FOLDERS)
    train = os.path.join(path, train_name)
    divided = all(os.path.isdir(os.path.join(path, n)) for n in ("train", "val"))
    if split == "train" and divided and not os.path.isdir(train):
        raise errors.InputError(
            f"data.train_split: {split_name!r} is no folder of {path!r}, which has"
            " train and val"
        )
    for name in eval_names:
        evaluation = os.path.join(path, name)
        if os.path.isdir(train) and os.path.isdir(evaluation):
            return {"train": train, "eval": evaluation}
    return None


def _class_names(root: str) -> list[str]:
    names = [entry.name for entry in _scan(root) if entry.is_dir()]
    names = sorted(name for name in names if not name.startswith("."))
    if len(names) < 2:
        found = f"one class folder, {names[0]!r}" if names else "no class folders"
        raise errors.InputError(
            f"data.path: {root!r} has {found}; give a folder that holds at least two"
            " folders of pictures, one per class"
        )
    return names


def _pictures(root: str, class_name: str) -> list[str]:
    """Paths of a class's pictures inside `root`, sorted.

    Raises:
        InputError: if there are none.
    """
    found = []
    pending = [class_name]
    while pending:
        inside = pending.pop()
        for entry in _scan(os.path.join(root, inside)):
            path = os.path.join(inside, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                pending.append(path)
            elif entry.name.lower().endswith(EXTENSIONS):
                found.append(path)
    if not found:
        raise errors.InputError(
            f"data.path: class folder {os.path.join(root, class_name)!r} holds no"
            f" pictures ({', '.join(EXTENSIONS)}); add some or remove it"
        )
    return sorted(found)


def _scan(folder: str) -> list[os.DirEntry]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise errors.InputError(f"data.path: cannot list {error}") from None


def _eval_pictures(root: str, class_names: tuple[str, ...]) -> list[list[str]]:
    """Pictures of each training class; a class may be absent from evaluation."""
    present = _class_names(root)
    unknown = sorted(set(present) - set(class_names))
    if unknown:
        raise errors.InputError(
            f"data.path: {os.path.join(root, unknown[0])!r} is a class that the"
            " training folder lacks; both must have the same class folders"
        )
    return [_pictures(root, name) if name in present else [] for name in class_names]


def hold_out(pictures: list[str], eval_fraction: float) -> dict[str, list[str]]:
    """Cuts the pictures of a class into "train" and "eval" by the hash of their path.

    Raises:
        InputError: if the share is not between 0 and 1.
    """
    if not 0.0 < eval_fraction < 1.0:
        raise errors.InputError(
            f"data.eval_fraction: {eval_fraction}; allowed is a share between 0 and 1"
        )
    count = max(1, round(eval_fraction * len(pictures)))
    count = min(count, len(pictures) - 1)
    held_out = set(sorted(pictures, key=_path_hash)[:count])
    return {
        "train": [p for p in pictures if p not in held_out],
        "eval": [p for p in pictures if p in held_out],
    }


def _path_hash(path: str) -> bytes:
    return hashlib.sha256(path.replace(os.sep, "/").encode()).digest()

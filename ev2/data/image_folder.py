"""Lists folders with one folder of images per class, `DIR/CLASS/.../IMAGE`."""

import os

from ev2 import errors
from ev2.data import storage

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


def is_image_name(name: str) -> bool:
    """Returns True for a visible file with the extension of an image."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def list_folder(root: str) -> list[tuple[str, str]]:
    """Returns (path inside `root`, class) of each image, sorted by class and path.

    Raises:
        InputError: `root` has fewer than two class folders, or one without images.
    """
    if not os.path.isdir(root):
        raise errors.InputError(f"data.path: {root!r} is not a folder")
    names = sorted(e.name for e in _scan(root) if e.is_dir() and e.name[0] != ".")
    if len(names) < 2:
        found = f"one class folder, {names[0]!r}" if names else "no class folders"
        raise errors.InputError(
            f"data.path: {root!r} has {found}; give a folder that holds at least two"
            " folders of images, one per class"
        )
    return [(path, name) for name in names for path in _list_class(root, name)]


def _list_class(root: str, class_name: str) -> list[str]:
    paths, pending = [], [class_name]
    while pending:
        inside = pending.pop()
        for entry in _scan(os.path.join(root, inside)):
            path = os.path.join(inside, entry.name)
            if entry.is_dir() and not entry.name.startswith("."):
                pending.append(path)
            elif is_image_name(entry.name):
                paths.append(path)
    if not paths:
        raise errors.InputError(
            f"data.path: class folder {os.path.join(root, class_name)!r} holds no"
            f" images ({', '.join(EXTENSIONS)}); add some or remove it"
        )
    return sorted(paths)


def _scan(folder: str) -> list[os.DirEntry]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise errors.InputError(f"data.path: cannot list {error}") from None


def read_image(path: str) -> bytes:
    """Returns the content of the file; b"", a corrupt image, if it may not be read.

    Raises:
        InputError: the storage fails.
    """
    try:
        return storage.read_file(path)
    except (FileNotFoundError, PermissionError):
        return b""
    except OSError as error:
        raise errors.InputError(f"data.path: cannot read {error}") from None

"""Atomic writes of files and folders, on local disks and in object storage."""

import contextlib
import os
import uuid
from collections.abc import Iterator

from etils import epath

from ev2 import errors


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Writes the file `path`: a reader sees the old content or the new, never a part.

    Raises:
      OSError: the folder cannot be written. The old content stays.
    """
    target = epath.Path(path)
    temporary = _temporary_sibling(target)
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path for a file or folder, which is then renamed to `path`.

    Parent folders are created. If the block raises, nothing is left at either path.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(target)
    try:
        yield temporary
        temporary.rename(target)
    finally:
        temporary.rmtree(missing_ok=True)


def check_new(key: str, path: str | os.PathLike) -> None:
    """Raises InputError if `path`, the value of `key`, exists or cannot be written."""
    if _exists(epath.Path(path)):
        raise errors.InputError(
            f"{key}: {os.fspath(path)!r} exists and is left as it is; give a new path"
        )
    check_writable(key, path)


def check_writable(key: str, path: str | os.PathLike) -> None:
    """Raises InputError if the folder `path`, the value of `key`, cannot be written.

    If `path` does not exist, its nearest existing parent is tested.
    """
    folder = epath.Path(path).absolute()
    while not _exists(folder):
        folder = folder.parent
    probe = _temporary_sibling(folder / "probe")
    try:
        probe.write_bytes(b"")  # permissions alone are not enough
        probe.unlink()
    except OSError as error:
        raise errors.InputError(
            f"{key}: {os.fspath(path)!r} cannot be written ({error.strerror} in "
            f"{os.fspath(folder)!r}); choose another path"
        ) from error


def _exists(path: epath.Path) -> bool:
    return path.exists() or os.path.islink(path)  # a link may point nowhere


def _temporary_sibling(path: epath.Path) -> epath.Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")

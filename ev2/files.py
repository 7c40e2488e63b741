"""Whole files and folders, written beside their place and then renamed into it."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from ev2 import errors


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Writes `content` to `path` so that no reader ever sees half of it.

    A file that was there stays untouched until the new one is complete.

    Raises:
      OSError: if the folder cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def check_new(key: str, path: str | os.PathLike) -> None:
    """Raises InputError if `path`, given as `key`, exists or cannot be made."""
    path = pathlib.Path(path)
    if os.path.lexists(path):
        raise errors.InputError(
            f"{key}: {str(path)!r} exists and is left as it is; give a path that is new"
        )
    check_writable(key, path)


def check_writable(key: str, path: str | os.PathLike) -> None:
    """Raises InputError if `path`, given as `key`, is no place to write at.

    That is the folder of this name or, where there is none, the next one above.
    """
    path = pathlib.Path(path)
    home = path.absolute()
    while not os.path.lexists(home):
        home = home.parent
    try:
        tempfile.TemporaryFile(dir=home).close()  # permissions alone do not tell
    except OSError as error:
        raise errors.InputError(
            f"{key}: {str(path)!r} cannot be written ({error.strerror} in "
            f"{str(home)!r}); choose another path"
        ) from error


@contextlib.contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a path to write a file or a folder at; it becomes `path` at the end.

    The folders above are made. If the block raises, nothing is left at either place.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)

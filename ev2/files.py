"""Whole files and folders, written beside their place and then renamed into it."""

import contextlib
import json
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
    home = path.absolute().parent
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


def write_json(path: str, document: object) -> None:
    """Writes a result for machines to the file of the flag `json`.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        pathlib.Path(path).write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise errors.InputError(
            f"json: {path!r} cannot be written ({error.strerror}); choose another file"
        ) from error

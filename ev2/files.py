"""Whole files, written beside their place and then renamed into it."""

import os
import pathlib


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

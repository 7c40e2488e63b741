"""Checksums of checkpoints, and the quarantine of a run's corrupt ones.

A checkpoint carries the size and CRC-32 of each of its files. They are computed when
it has been written and before it is committed.
"""

import itertools
import json
import os
import pathlib
import zlib
from typing import Any

from absl import logging

from ev2 import errors

CHECKPOINTS = "checkpoints"  # folder of a run; holds one folder per step
_CHECKSUMS = "sums.json"  # {file: [bytes, CRC-32]}, in each checkpoint
_QUARANTINE = "damaged"
_PARTS = ("state", "meta", "metrics")  # folders of a checkpoint
_CHUNK_BYTES = 2**20


def list_checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints in a folder, corrupt or not, newest first."""
    children = folder.iterdir() if folder.is_dir() else ()
    steps = [child for child in children if child.name.isdigit() and child.is_dir()]
    return sorted(steps, key=lambda child: int(child.name), reverse=True)


def quarantine(workdir: str) -> None:
    """Moves a run's corrupt checkpoints to `WORKDIR/damaged`, with a warning for each.

    Checkpoints are verified from the newest on, until one is intact. Of the older
    checkpoints only the evaluation scores are verified: a resumed run reads them all.

    Raises:
      InputError: every checkpoint is corrupt. Nothing is moved.
    """
    corrupt: list[tuple[pathlib.Path, str]] = []
    intact: pathlib.Path | None = None
    for checkpoint in list_checkpoints(pathlib.Path(workdir).absolute() / CHECKPOINTS):
        damage = find_damage(checkpoint, "metrics/" if intact else "")
        if damage:
            corrupt.append((checkpoint, damage))
        intact = intact or (None if damage else checkpoint)
    if corrupt and intact is None:
        checkpoint, damage = corrupt[0]
        raise errors.InputError(
            f"checkpoint: {str(checkpoint)!r} is corrupt ({damage}), and so is every "
            "checkpoint before it; restore one, or move all away to start again"
        )
    for checkpoint, damage in corrupt:
        assert intact is not None
        logging.error(
            "The checkpoint of step %s is corrupt: %s. It was moved to %s; the run "
            "resumes from step %s.",
            *(checkpoint.name, damage, _move(checkpoint), intact.name),
        )


def _move(checkpoint: pathlib.Path) -> pathlib.Path:
    folder = checkpoint.parent.parent / _QUARANTINE
    folder.mkdir(exist_ok=True)
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    targets = (folder / f"{checkpoint.name}{suffix}" for suffix in suffixes)
    target = next(target for target in targets if not os.path.lexists(target))
    return checkpoint.rename(target)


def write_checksums(checkpoint: pathlib.Path) -> None:
    """Writes the checksums of all files of a complete checkpoint into it."""
    checksums = {
        path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _crc32(path)]
        for part in _PARTS
        for path in sorted((checkpoint / part).rglob("*"))
        if path.is_file()
    }
    (checkpoint / _CHECKSUMS).write_text(json.dumps(checksums))


def find_damage(checkpoint: pathlib.Path, part: str = "") -> str | None:
    """Returns the first difference from the checksums; None for an intact checkpoint.

    Only files are verified whose paths in the checkpoint begin with `part`.
    """
    try:
        checksums = _parse((checkpoint / _CHECKSUMS).read_text())
    except FileNotFoundError:
        return f"{_CHECKSUMS} is missing"
    except OSError as error:
        return f"{_CHECKSUMS}: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{_CHECKSUMS} is truncated or changed"
    reasons = (
        _compare(checkpoint / name, name, size, crc)
        for name, size, crc in checksums
        if name.startswith(part)
    )
    return next(filter(None, reasons), None)


def _parse(text: str) -> list[tuple[str, int, int]]:
    entries: dict[str, Any] = json.loads(text)
    return [(name, int(size), int(crc)) for name, (size, crc) in entries.items()]


def _compare(path: pathlib.Path, name: str, size: int, crc: int) -> str | None:
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"{name} has {actual:,} bytes instead of {size:,}"
        return None if _crc32(path) == crc else f"{name} has changed"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name}: {error.strerror}"


def _crc32(path: pathlib.Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc

"""Verifies checkpoint checksums and quarantines corrupt checkpoints.

A checkpoint holds the CRC-32 of each of its files, computed when all files are
written and before the checkpoint is committed.
"""

import itertools
import json
import os
import pathlib
import zlib

from absl import logging

from ev2 import errors

CHECKPOINTS = "checkpoints"  # folder of a run; holds one folder per step
_CHECKSUMS = "sums.json"  # {file: CRC-32}, in each checkpoint
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

    Checkpoints are verified from the newest until an intact one. Of the older
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
        path.relative_to(checkpoint).as_posix(): _crc32(path)
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
        checksums = json.loads((checkpoint / _CHECKSUMS).read_text())
        for name, crc in checksums.items():
            if name.startswith(part) and _crc32(checkpoint / name) != crc:
                return f"{name} has changed"
    except OSError as error:
        path = os.path.relpath(error.filename or checkpoint, checkpoint)
        return f"{path}: {error.strerror}"
    except (ValueError, AttributeError):
        return f"{_CHECKSUMS} is truncated or changed"
    return None


def _crc32(path: pathlib.Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc

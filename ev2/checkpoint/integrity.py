"""Whether a run's checkpoints still hold what was written; damaged ones set aside."""

import itertools
import json
import os
import pathlib
import zlib

from absl import logging

from ev2 import errors

_SUMS = "sums.json"  # {file: [bytes, CRC-32]}, in each checkpoint
_PARTS = ("state", "meta", "metrics")  # of a checkpoint: folders of files with sums
# Without these a checkpoint is not whole, whenever it was written.
_NEEDED = ("state/_METADATA", "state/manifest.ocdbt", "meta/metadata")
_ASIDE = "damaged"
_CHUNK_BYTES = 2**20


def find_steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints in `folder`, whole or not, newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    steps = [child for child in found if child.name.isdigit() and child.is_dir()]
    return sorted(steps, key=lambda child: int(child.name), reverse=True)


def set_damaged_aside(folder: pathlib.Path) -> None:
    """Moves the newest checkpoints away, as far as they are damaged, and says so.

    Older ones are damaged if their scores or sums are: all scores are read when a run
    goes on.

    Args:
      folder: that of a run's checkpoints; those moved lie in "damaged" beside it.

    Raises:
      InputError: all are damaged; nothing is moved then.
    """
    damaged = []
    steps = iter(find_steps(folder))
    for step in steps:
        reason = _find_lack(step) or find_damage(step)
        if reason is None:
            break
        damaged.append((step, reason))
    else:
        if damaged:
            step, reason = damaged[0]
            raise errors.InputError(
                f"checkpoint: {str(step)!r} is damaged ({reason}), and there is none "
                "before that is not; restore one, or move all away to start again"
            )
        return
    older = ((bad, find_damage(bad, "metrics/")) for bad in steps)
    for bad, reason in [*damaged, *((bad, why) for bad, why in older if why)]:
        logging.error(
            "The checkpoint of step %s is damaged: %s. It lies in %s now, and the run "
            "goes on from step %s.",
            *(bad.name, reason, _move_aside(bad), step.name),
        )


def _move_aside(step: pathlib.Path) -> pathlib.Path:
    home = step.parent.parent / _ASIDE
    home.mkdir(exist_ok=True)
    names = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    places = (home / f"{step.name}{name}" for name in names)
    place = next(place for place in places if not os.path.lexists(place))
    os.rename(step, place)
    return place


def _find_lack(step: pathlib.Path) -> str | None:
    missing = [name for name in _NEEDED if not (step / name).exists()]
    return f"{missing[0]} is missing" if missing else None


def write_sums(step: pathlib.Path) -> None:
    """Writes the sums of all files of a checkpoint into it."""
    sums = {
        path.relative_to(step).as_posix(): [path.stat().st_size, _crc32(path)]
        for part in _PARTS
        for path in sorted((step / part).rglob("*"))
        if path.is_file()
    }
    (step / _SUMS).write_text(json.dumps(sums))


def find_damage(step: pathlib.Path, part: str = "") -> str | None:
    """Returns what differs from what was written, None if nothing does.

    Only files are looked at whose names in the checkpoint begin with `part`.
    None as well where there are no sums: weights that are not of a run have none.
    """
    try:
        text = (step / _SUMS).read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{_SUMS}: {error.strerror}"
    try:
        sums = [(name, int(size), int(crc)) for name, (size, crc) in _items(text)]
    except (ValueError, TypeError):
        return f"{_SUMS} is cut or changed"
    sums = [entry for entry in sums if entry[0].startswith(part)]
    reasons = (_compare(step / name, name, size, crc) for name, size, crc in sums)
    return next((reason for reason in reasons if reason), None)


def _items(text: str):
    sums = json.loads(text)
    if not isinstance(sums, dict):
        raise ValueError(text)
    return sums.items()


def _compare(path: pathlib.Path, name: str, size: int, crc: int) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{name} has {found:,} bytes of {size:,}"
        return None if _crc32(path) == crc else f"{name} is not what was written"
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

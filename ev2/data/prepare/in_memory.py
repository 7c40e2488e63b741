"""Sets that fit into memory: named pictures to shards and a manifest, in one go."""

import collections
import dataclasses
import hashlib
import json
import math
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ev2 import errors
from ev2.data.prepare import listing, shards

SHARD_BYTES = 64_000_000  # about the size of a shard

# Pictures of each split; Table 9 of the paper, where Flowers' two first are one.
TABLE_9 = {
    "flowers": {"train": 1_020, "validation": 1_020, "test": 6_149},
    "cars": {"train": 8_144, "test": 8_041},
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A file with its class, counted from 0."""

    name: str
    encoded: bytes
    label: int


def find_files(key: str, folder: str, hints: Mapping[str, str]) -> dict[str, str]:
    """Returns the paths of files in a folder.

    Args:
        key: what the folder is called on the command line.
        folder: the folder.
        hints: by the name of each file, where it is to be had.

    Raises:
        InputError: one is missing; it is named, with its hint.
    """
    for name, hint in hints.items():
        if not os.path.isfile(os.path.join(folder, name)):
            raise errors.InputError(f"{key}: {folder!r} lacks {name}; {hint}")
    return {name: os.path.join(folder, name) for name in hints}


def read_members(
    key: str, path: str, names: Collection[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yields base name and content of the files in a tar archive, compressed or not.

    Args:
        key: what the archive is called on the command line.
        path: the archive.
        names: base names that are wanted; None = all.

    Raises:
        InputError: it is cut, or no such archive.
    """
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if member.isreg() and (names is None or name in names):
                    file = archive.extractfile(member)
                    assert file is not None  # it is a regular file
                    yield name, file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise errors.InputError(
            f"{key}: {path!r} is cut or no tar archive ({error}); fetch it again"
        ) from None


def load_matlab(key: str, path: str, content: Any = None) -> dict[str, Any]:
    """Returns the variables of a .mat file, or of `content`, an open one.

    Raises:
        InputError: it cannot be read.
    """
    try:
        import scipy.io
    except ImportError as error:
        raise errors.InputError(
            f"prepare: SciPy cannot be imported ({error}); pip install 'ev2[prepare]'"
        ) from None
    try:
        return scipy.io.loadmat(path if content is None else content, squeeze_me=True)
    except Exception as error:  # whatever the library makes of damaged files
        raise errors.InputError(
            f"{key}: cannot read {path!r} ({error}); fetch it again"
        ) from None


def check_count(key: str, split: str, found: int, expected: int) -> None:
    """Raises InputError unless a split has as many pictures as it should."""
    if found != expected:
        raise errors.InputError(
            f"{key}: {found:,} pictures for {split}, and there should be {expected:,}; "
            "fetch the files again"
        )


def write_split(folder: str, split: str, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Writes the shards of a split, in the order of the SHA-256 of the names.

    Returns:
        Its part of the manifest.
    """
    ordered = sorted(pictures, key=lambda p: hashlib.sha256(p.name.encode()).digest())
    size = sum(len(picture.encoded) for picture in ordered)
    count = max(1, math.ceil(size / SHARD_BYTES))

    def record(picture: Picture) -> bytes:
        name = picture.name.encode()
        return shards.example(picture.encoded, [picture.label], filename=name)

    written = shards.write_split(folder, split, ordered, count, record)
    per_class = collections.Counter(picture.label for picture in ordered)
    fewest, most = min(per_class.values()), max(per_class.values())
    return {"images": len(ordered), "per_class": [fewest, most], "shards": written}


def write_manifest(
    folder: str,
    dataset: str,
    classes: Sequence[str],
    splits: dict[str, Any],
    sources: Sequence[str],
) -> dict[str, Any]:
    """Writes labels.txt and manifest.json; returns the latter's content.

    Args:
        folder: the one with the shards.
        dataset: its name.
        classes: names of the classes.
        splits: from `write_split`.
        sources: paths of what was read.
    """
    manifest = {
        "dataset": dataset,
        "rule": {"splits": "the set's own", "order": listing.ORDER},
        "sources": [listing.describe_source(path) for path in sources],
        "classes": list(classes),
        "max_labels": 1,
        "splits": splits,
    }
    shards.write_text(folder, "labels.txt", "\n".join(classes) + "\n")
    shards.write_text(folder, "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest

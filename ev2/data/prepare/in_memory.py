"""Writes image sets that fit into memory as shards with a manifest."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ev2 import errors, files
from ev2.data import storage
from ev2.data.prepare import listing, shards

SHARD_BYTES = 64_000_000  # approximate size of a shard

# Images of each split; Table 9 of the paper, which counts the first two splits of
# Flowers as one.
TABLE_9 = {
    "flowers": {"train": 1_020, "validation": 1_020, "test": 6_149},
    "cars": {"train": 8_144, "test": 8_041},
}


@dataclasses.dataclass(frozen=True)
class NamedImage:
    """An encoded image with its file name and its class, counted from 0."""

    name: str
    encoded: bytes
    label: int


def check_free(out: str) -> None:
    """Raises InputError if the local folder `out` contains anything."""
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise errors.InputError(
            f"out: {out!r} exists and is not an empty folder; nothing is overwritten,"
            " give a new folder"
        )
    files.check_writable("out", out)


@contextlib.contextmanager
def new_folder(out: str) -> Iterator[str]:
    """Yields a local folder to fill, which becomes `out`; nothing is left on an error.

    Raises:
        InputError: `out` contains anything, or cannot be made.
    """
    check_free(out)
    with files.atomic_path(out) as folder:
        os.mkdir(folder)
        yield os.fspath(folder)


def find_files(archive: str, hints: Mapping[str, str]) -> dict[str, str]:
    """Returns the paths of the files in the folder `archive` by name.

    Raises:
        InputError: a file is missing; the message has its name and its hint.
    """
    paths = {name: os.path.join(archive, name) for name in hints}
    for name, hint in hints.items():
        if not os.path.isfile(paths[name]):
            raise errors.InputError(f"archive: {archive!r} lacks {name}; {hint}")
    return paths


def read_members(
    key: str, path: str, names: Collection[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yields base name and content of the files in a tar archive, compressed or not.

    Only `names` are read, all without; `key` is the archive's flag.

    Raises:
        InputError: the file is truncated or is not an archive.
    """
    try:
        with (
            storage.open_file(path) as stream,
            tarfile.open(fileobj=stream, mode="r:*") as archive,
        ):
            for member in archive:
                name = os.path.basename(member.name)
                if member.isreg() and (names is None or name in names):
                    file = archive.extractfile(member)
                    assert file is not None  # it is a regular file
                    yield name, file.read()
    except (*storage.ERRORS, EOFError, zlib.error, tarfile.TarError) as error:
        raise errors.InputError(
            f"{key}: {path!r} is truncated or not a tar archive ({error}); fetch it"
            " again"
        ) from None


def load_matlab(key: str, path: str, content: Any = None) -> dict[str, Any]:
    """Returns the variables of a .mat file, or of `content`, an open one.

    Raises:
        InputError: the file cannot be read, or SciPy is missing.
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


def check_count(split: str, count: int, expected: int) -> None:
    """Raises InputError unless a split has the expected number of images."""
    if count != expected:
        raise errors.InputError(
            f"archive: {count:,} images for {split}, and there should be {expected:,}; "
            "fetch the files again"
        )


def write_set(
    out: str,
    dataset: str,
    classes: Sequence[str],
    splits: Iterable[str],
    read: Callable[[str], Sequence[NamedImage]],
    sources: Sequence[str],
) -> dict[str, Any]:
    """Writes the images that `read` returns for each split; returns the manifest."""
    with new_folder(out) as folder:
        written = {split: _write_split(folder, split, read(split)) for split in splits}
        return write_manifest(folder, dataset, classes, written, sources)


def _write_split(
    folder: str, split: str, images: Sequence[NamedImage]
) -> dict[str, Any]:
    """Writes a split sorted by the SHA-256 of the names; returns its manifest entry."""
    ordered = sorted(images, key=lambda i: hashlib.sha256(i.name.encode()).digest())
    size = sum(len(image.encoded) for image in ordered)
    count = max(1, math.ceil(size / SHARD_BYTES))

    def record(image: NamedImage) -> bytes:
        name = image.name.encode()
        return shards.example(image.encoded, [image.label], filename=name)

    written = shards.write_split(folder, split, ordered, count, record)
    per_class = collections.Counter(image.label for image in ordered)
    fewest, most = min(per_class.values()), max(per_class.values())
    return {"images": len(ordered), "per_class": [fewest, most], "shards": written}


def write_manifest(
    folder: str,
    dataset: str,
    classes: Sequence[str],
    splits: dict[str, Any],
    sources: Sequence[str],
    rule: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Writes labels.txt and manifest.json; returns the manifest.

    Args:
        folder: folder of the shards.
        dataset: name.
        classes: names of the classes.
        splits: manifest entry of each split.
        sources: paths of the original files.
        rule: rule of the splits, in words; None: the set's own, sorted by hash.
    """
    manifest = {
        "dataset": dataset,
        "rule": rule or {"splits": "the set's own", "order": listing.ORDER},
        "sources": [listing.describe_source(path) for path in sources],
        "classes": list(classes),
        "max_labels": 1,
        "splits": splits,
    }
    path = pathlib.Path(folder)
    (path / "labels.txt").write_text("\n".join(classes) + "\n", "utf-8")
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return manifest

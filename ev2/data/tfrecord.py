"""TFRecord shards with random access, through an index of record positions.

A TFRecord file is a run of (length uint64, its CRC uint32, payload, its CRC uint32),
little-endian. Walking the lengths gives every record's place; the walk happens once
and its result is kept in a file beside the shards, or under `~/.cache/ev2` where the
folder is read-only. CRCs are not verified: a damaged picture shows when it is decoded.
"""

import dataclasses
import hashlib
import os
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable

import numpy as np
from absl import logging

from ev2 import errors
from ev2.data import storage as files
from ev2.data.tensorflow import tf

HEADER_BYTES, FOOTER_BYTES = 12, 4
LENGTH = struct.Struct("<Q")
SHARD_NAME = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclasses.dataclass(frozen=True)
class Index:
    """Where each record's payload lies, shard after shard."""

    counts: np.ndarray  # [shards] int64, records in each shard
    offsets: np.ndarray  # [records] int64, bytes from the start of its shard
    lengths: np.ndarray  # [records] int64, bytes


class RecordFiles:
    """The records of a list of shards as one sequence of byte strings."""

    def __init__(self, paths: list[str], index: Index):
        self._reader = files.Reader(paths)
        self._index = index
        self.counts = index.counts  # [shards] records in each
        self._ends = np.cumsum(index.counts)

    def __len__(self) -> int:
        return len(self._index.offsets)

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Payloads of the records, in the order asked for.

        Raises:
            InputError: a shard is not the one that was indexed.
        """
        shards = np.searchsorted(self._ends, indices, side="right")
        offsets, lengths = self._index.offsets[indices], self._index.lengths[indices]
        places = list(
            zip(shards.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        )
        return files.map_parallel(lambda place: self._read_one(*place), places)

    def _read_one(self, shard: int, offset: int, length: int) -> bytes:
        """A payload; the header before it must give the length that was indexed."""
        start, size = offset - HEADER_BYTES, HEADER_BYTES + length
        record = self._reader.read(shard, start, size)
        if len(record) != size or LENGTH.unpack_from(record)[0] != length:
            raise errors.InputError(
                f"data.path: {self._reader.paths[shard]} has changed since its index"
                " was made; put the shard back, or delete the index"
                f" {' or '.join(_index_places(list(self._reader.paths)))}"
            )
        return record[HEADER_BYTES:]

    def name(self, index: int) -> str:
        """Shard and number of the record in it, counted from 0."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = self._ends[shard] - self._index.counts[shard]
        return f"{self._reader.paths[shard]} record {index - first}"


def find_shards(folder: str, split: str) -> list[str]:
    """Paths of `folder/split-00000-of-N`..., complete and in order.

    Args:
        folder: the folder.
        split: one split, or several as "train+minival", one after another.

    Raises:
        InputError: if the folder cannot be read, holds no shard of a split, one of
            its shards is missing, or a split is named twice.
    """
    parts = [part.strip() for part in split.split("+")]
    if len(set(parts)) < len(parts):
        raise errors.InputError(f"data: split {split!r} names a split twice")
    try:
        names = files.list_names(folder)
    except (OSError, tf.errors.OpError) as error:
        raise errors.InputError(f"data.path: cannot list {folder!r}: {error}") from None
    return [path for part in parts for path in _find_split(folder, names, part)]


def _find_split(folder: str, names: list[str], split: str) -> list[str]:
    found = {}
    for name in names:
        match = SHARD_NAME.search(name)
        if match and name[: match.start()] == split:
            found[int(match[1])] = (name, int(match[2]))
    if not found:
        raise errors.InputError(
            f"data.path: {folder!r} has no files {split}-00000-of-NNNNN; give a folder"
            " of TFRecord shards in the ImageNet layout"
        )
    count = max(total for _, total in found.values())
    missing = sorted(set(range(count)) - set(found))
    if missing or len({total for _, total in found.values()}) > 1:
        first = f"{split}-{missing[0] if missing else 0:05d}-of-{count:05d}"
        raise errors.InputError(
            f"data.path: {folder!r} lacks {len(missing) or 'some'} of {count} shards,"
            f" first {first}; copy or prepare it again"
        )
    return [os.path.join(folder, found[i][0]) for i in range(count)]


def open_records(paths: list[str], *, keep_index: bool = True) -> RecordFiles:
    """Opens shards of one folder; reads or makes their index.

    Raises:
        InputError: if a shard cannot be read, is cut, or is no TFRecord file.
    """
    try:
        sizes = files.map_parallel(files.size, paths)
    except (OSError, tf.errors.OpError) as error:
        raise errors.InputError(f"data.path: {error}") from None
    if not keep_index:
        return RecordFiles(paths, _make_index(paths))
    for place in _index_places(paths):
        index = _load_index(place, paths, sizes)
        if index is not None:
            return RecordFiles(paths, index)
    index = _make_index(paths)
    for place in _index_places(paths):
        if _save_index(place, paths, sizes, index):
            break
    return RecordFiles(paths, index)


def _make_index(paths: list[str]) -> Index:
    logging.info("Indexing the records of %d shards, once.", len(paths))
    walked = files.map_parallel(_walk, paths)
    counts = np.array([len(offsets) for offsets, _ in walked], np.int64)
    return Index(
        counts,
        np.concatenate([offsets for offsets, _ in walked]),
        np.concatenate([lengths for _, lengths in walked]),
    )


def _walk(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Payload offsets and lengths of one shard, from its record headers."""
    try:
        if files.is_remote(path):  # one stream costs less than a request per record
            data = files.read_file(path)
            return _walk_headers(path, len(data), lambda at, n: data[at : at + n])
        with open(path, "rb", buffering=0) as file:
            # pread, not mmap: a page that has to come from disk must not hold the GIL.
            descriptor = file.fileno()
            return _walk_headers(
                path, files.size(path), lambda at, n: os.pread(descriptor, n, at)
            )
    except (OSError, tf.errors.OpError) as error:
        raise errors.InputError(f"data.path: cannot read {path}: {error}") from None


def _walk_headers(path: str, size: int, read: Callable[[int, int], bytes]):
    offsets, lengths = [], []
    place = 0
    while place < size:
        header = read(place, HEADER_BYTES)
        length = LENGTH.unpack_from(header)[0] if len(header) == HEADER_BYTES else 0
        payload = place + HEADER_BYTES
        place = payload + length + FOOTER_BYTES
        if place > size:
            raise errors.InputError(
                f"data.path: {path} is cut in record {len(offsets)} (it ends at byte"
                f" {size}) or is no TFRecord file; copy or prepare it again"
            )
        offsets.append(payload)
        lengths.append(length)
    return np.array(offsets, np.int64), np.array(lengths, np.int64)


def _index_places(paths: list[str]) -> list[str]:
    """Where the index may lie: beside the shards, else in the user's cache."""
    folder = os.path.dirname(paths[0])
    if not files.is_remote(folder):
        folder = os.path.abspath(folder)
    names = "\n".join(os.path.basename(path) for path in paths)
    split = SHARD_NAME.sub("", os.path.basename(paths[0]))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cached = os.path.join(cache, "ev2", f"{split}-{_digest(folder + names)}.npz")
    if files.is_remote(folder):
        return [cached]
    # Shards are named in the digest: a slice of a split has an index of its own.
    return [os.path.join(folder, f".ev2-{split}-{_digest(names)}.npz"), cached]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _load_index(place: str, paths: list[str], sizes: list[int]) -> Index | None:
    """The index at `place`, unless it is absent, damaged or of other files."""
    try:
        with np.load(place, allow_pickle=False) as saved:
            names = [os.path.basename(path) for path in paths]
            if saved["names"].tolist() != names or saved["sizes"].tolist() != sizes:
                return None
            return Index(saved["counts"], saved["offsets"], saved["lengths"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _save_index(place: str, paths: list[str], sizes: list[int], index: Index) -> bool:
    """Writes the index in one move; False if the folder is not writable."""
    try:
        folder = os.path.dirname(place)
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            np.savez(
                file,
                names=np.array([os.path.basename(path) for path in paths]),
                sizes=np.array(sizes, np.int64),
                counts=index.counts,
                offsets=index.offsets,
                lengths=index.lengths,
            )
        os.replace(file.name, place)
    except OSError:
        return False
    return True

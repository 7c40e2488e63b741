"""Reads TFRecord shards by index, through an index of record positions.

A TFRecord file is a sequence of (length uint64, its CRC uint32, payload, its CRC
uint32), little-endian. Reading all lengths once gives every record's offset; the result
is kept in a file beside the shards, or under `~/.cache/ev2` where the folder is
read-only. CRCs are not verified: decoding finds damaged images.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from google.protobuf import message

from ev2 import errors, files
from ev2.data import storage
from ev2.data.tensorflow import tf

HEADER_BYTES, FOOTER_BYTES = 12, 4
LENGTH = struct.Struct("<Q")
SHARD_NAME = re.compile(r"-(\d{5})-of-(\d{5})$")


class RecordSource:
    """Images in records that contain a `tf.train.Example`; see `sources.Source`.

    The defaults are the ImageNet layout: `image/encoded`, and `image/class/label`
    counted from 1. With `max_labels` above 1 an image may have several labels.
    """

    def __init__(
        self,
        records: Any,
        class_names: tuple[str, ...],
        *,
        image_key: str = "image/encoded",
        label_key: str = "image/class/label",
        first_label: int = 1,
        max_labels: int = 1,
    ):
        self.class_names = class_names
        self._records = records
        self._image_key, self._label_key = image_key, label_key
        self._first_label = first_label
        self._max_labels = max_labels

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """See `sources.Source.read`."""
        images, labels = [], np.full((len(indices), self._max_labels), -1, np.int32)
        for i, record in enumerate(self._records.read(indices)):
            try:
                feature = tf.train.Example.FromString(record).features.feature
            except message.DecodeError:  # the record is damaged
                images.append(b"")
                labels[i, 0] = 0
                continue
            image, label = feature.get(self._image_key), feature.get(self._label_key)
            if image is None or label is None or not label.int64_list.value:
                missing = self._image_key if image is None else self._label_key
                raise errors.InputError(
                    f"data.path: {self.name(indices[i])} has no feature {missing!r}"
                    f" (it has {', '.join(sorted(feature)) or 'none'})"
                )
            classes = self._classes(label.int64_list.value, indices[i])
            labels[i, : len(classes)] = classes
            values = image.bytes_list.value
            images.append(values[0] if values else b"")
        return images, labels if self._max_labels > 1 else labels[:, 0]

    def name(self, index: int) -> str:
        """Returns the shard and the number of the record in it."""
        return self._records.name(index)

    def _classes(self, labels: Sequence[int], index: int) -> list[int]:
        """Returns the distinct classes of one image, in ascending order."""
        last = self._first_label + len(self.class_names) - 1
        for label in labels:
            if not self._first_label <= label <= last:
                raise errors.InputError(
                    f"data.num_classes: {len(self.class_names)}, but"
                    f" {self.name(index)} has label {label}; allowed is"
                    f" {self._first_label}..{last}"
                )
        classes = sorted({label - self._first_label for label in labels})
        if len(classes) > self._max_labels:
            raise errors.InputError(
                f"data.max_labels: {self._max_labels}, but {self.name(index)} has"
                f" {len(classes)} labels; give at least that many"
            )
        return classes


@dataclasses.dataclass(frozen=True)
class Index:
    """Offset and length of each record's payload, shard after shard."""

    counts: np.ndarray  # [shards] int64, records in each shard
    offsets: np.ndarray  # [records] int64, bytes from the start of its shard
    lengths: np.ndarray  # [records] int64, bytes


class Shards:
    """Records of several files in one sequence, numbered from 0."""

    def __init__(self, paths: Sequence[str], counts: np.ndarray):
        self.paths = tuple(paths)
        self.counts = counts  # [shards] int64, records in each
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shard of each record, and its number in the shard."""
        shards = np.searchsorted(self._ends, indices, side="right")
        return shards, indices - (self._ends - self.counts)[shards]

    def name(self, index: int) -> str:
        """Returns the shard and the number of the record in it, counted from 0."""
        shard, number = self.locate(np.asarray(index))
        return f"{self.paths[shard]} record {number}"


class RecordFiles(Shards):
    """The records of TFRecord shards as one sequence of byte strings."""

    def __init__(self, paths: list[str], index: Index):
        super().__init__(paths, index.counts)
        self._reader = storage.Reader(paths)
        self._index = index

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Returns the payloads of the records, in the order of `indices`.

        Raises:
            InputError: a shard has changed since it was indexed.
        """
        shards, _ = self.locate(indices)
        offsets, lengths = self._index.offsets[indices], self._index.lengths[indices]
        ranges = zip(shards.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        return storage.map_parallel(lambda r: self._read_one(*r), list(ranges))

    def _read_one(self, shard: int, offset: int, length: int) -> bytes:
        """Returns a payload, whose header must have the indexed length."""
        start, size = offset - HEADER_BYTES, HEADER_BYTES + length
        record = self._reader.read(shard, start, size)
        if len(record) != size or LENGTH.unpack_from(record)[0] != length:
            raise errors.InputError(
                f"data.path: {self.paths[shard]} has changed since its index was made;"
                " put the shard back, or delete the index"
                f" {' or '.join(_index_paths(list(self.paths)))}"
            )
        return record[HEADER_BYTES:]


def find_shards(folder: str, split: str) -> list[str]:
    """Returns the paths of `folder/split-00000-of-N`..., complete and in order.

    Args:
        folder: local or remote.
        split: one split, or several as "train+minival", one after another.

    Raises:
        InputError: the folder cannot be read or has no shard of a split, a shard is
            missing, or a split is named twice.
    """
    parts = [part.strip() for part in split.split("+")]
    if len(set(parts)) < len(parts):
        raise errors.InputError(f"data: split {split!r} names a split twice")
    try:
        names = storage.list_names(folder)
    except storage.ERRORS as error:
        raise errors.InputError(f"data.path: cannot list {folder!r}: {error}") from None
    return [path for part in parts for path in _find_split(folder, names, part)]


def _find_split(folder: str, names: list[str], split: str) -> list[str]:
    shards = {}
    for name in names:
        match = SHARD_NAME.search(name)
        if match and name[: match.start()] == split:
            shards[int(match[1])] = (name, int(match[2]))
    if not shards:
        raise errors.InputError(
            f"data.path: {folder!r} has no files {split}-00000-of-NNNNN; give a folder"
            " of TFRecord shards in the ImageNet layout"
        )
    count = max(total for _, total in shards.values())
    missing = sorted(set(range(count)) - set(shards))
    if missing or len({total for _, total in shards.values()}) > 1:
        first = f"{split}-{missing[0] if missing else 0:05d}-of-{count:05d}"
        raise errors.InputError(
            f"data.path: {folder!r} lacks {len(missing) or 'some'} of {count} shards,"
            f" first {first}; copy or prepare it again"
        )
    return [os.path.join(folder, shards[i][0]) for i in range(count)]


def open_records(paths: list[str], *, keep_index: bool = True) -> RecordFiles:
    """Opens the shards of one folder; loads their index or makes it.

    Raises:
        InputError: a shard cannot be read or is truncated, or a file is not a
            TFRecord file.
    """
    try:
        sizes = storage.map_parallel(storage.size, paths)
    except storage.ERRORS as error:
        raise errors.InputError(f"data.path: {error}") from None
    if not keep_index:
        return RecordFiles(paths, _make_index(paths))
    for index_path in _index_paths(paths):
        index = _load_index(index_path, paths, sizes)
        if index is not None:
            return RecordFiles(paths, index)
    index = _make_index(paths)
    for index_path in _index_paths(paths):
        with contextlib.suppress(OSError):  # the folder is read-only
            _save_index(index_path, paths, sizes, index)
            break
    return RecordFiles(paths, index)


def _make_index(paths: list[str]) -> Index:
    logging.info("Indexing the records of %d shards, once.", len(paths))
    offsets, lengths = zip(*storage.map_parallel(_read_positions, paths), strict=True)
    counts = np.array([len(shard) for shard in offsets], np.int64)
    return Index(counts, np.concatenate(offsets), np.concatenate(lengths))


def _read_positions(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns payload offsets and lengths of one shard, from its record headers."""
    try:
        if storage.is_remote(path):  # one stream costs less than a request per record
            data = storage.read_file(path)
            return _walk_headers(path, len(data), lambda at, n: data[at : at + n])
        size, reader = storage.size(path), storage.Reader([path])
        # pread, not mmap: a page that has to come from disk must not hold the GIL.
        return _walk_headers(path, size, lambda at, n: reader.read(0, at, n))
    except storage.ERRORS as error:
        raise errors.InputError(f"data.path: cannot read {path}: {error}") from None


def _walk_headers(path: str, size: int, read: Callable[[int, int], bytes]):
    offsets, lengths = [], []
    position = 0
    while position < size:
        header = read(position, HEADER_BYTES)
        length = LENGTH.unpack_from(header)[0] if len(header) == HEADER_BYTES else 0
        payload = position + HEADER_BYTES
        position = payload + length + FOOTER_BYTES
        if position > size:
            raise errors.InputError(
                f"data.path: {path} is truncated in record {len(offsets)} (it ends at"
                f" byte {size}) or is not a TFRecord file; copy or prepare it again"
            )
        offsets.append(payload)
        lengths.append(length)
    return np.array(offsets, np.int64), np.array(lengths, np.int64)


def _index_paths(paths: list[str]) -> list[str]:
    """Returns the paths of the index: beside the shards, or in the user's cache."""
    folder = os.path.dirname(paths[0])
    if not storage.is_remote(folder):
        folder = os.path.abspath(folder)
    names = "\n".join(os.path.basename(path) for path in paths)
    split = SHARD_NAME.sub("", os.path.basename(paths[0]))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cached = os.path.join(cache, "ev2", f"{split}-{_digest(folder + names)}.npz")
    if storage.is_remote(folder):
        return [cached]
    # Shards are named in the digest: a slice of a split has an index of its own.
    return [os.path.join(folder, f".ev2-{split}-{_digest(names)}.npz"), cached]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _load_index(index_path: str, paths: list[str], sizes: list[int]) -> Index | None:
    """Returns the index; None if it is missing, damaged or of other files."""
    try:
        with np.load(index_path, allow_pickle=False) as saved:
            names = [os.path.basename(path) for path in paths]
            if saved["names"].tolist() != names or saved["sizes"].tolist() != sizes:
                return None
            return Index(saved["counts"], saved["offsets"], saved["lengths"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _save_index(index_path: str, paths: list[str], sizes: list[int], index: Index):
    stream = io.BytesIO()
    names = np.array([os.path.basename(path) for path in paths])
    columns = dataclasses.asdict(index)
    np.savez(stream, names=names, sizes=np.array(sizes, np.int64), **columns)
    os.makedirs(os.path.dirname(index_path), exist_ok=True)
    files.write_atomically(index_path, stream.getvalue())

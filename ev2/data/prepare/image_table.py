"""Table of image locations as columns of numbers: 13 million rows fit into memory."""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageTable:
    """Images with their classes.

    Image i has `counts[i]` labels, which follow the labels of the images before it.
    """

    paths: tuple[str, ...]  # of the files that contain the images
    files: np.ndarray  # [N] int32, index in `paths`
    offsets: np.ndarray  # [N] int64, bytes from the start of the file
    sizes: np.ndarray  # [N] int64, bytes
    names: np.ndarray  # [N] bytes, file name in UTF-8
    labels: np.ndarray  # [labels] int32, classes counted from 0
    counts: np.ndarray  # [N] int32, labels of each image

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: np.ndarray) -> "ImageTable":
        """Returns the images `rows`, in that order, with the paths that they need."""
        used, numbers = np.unique(self.files[rows], return_inverse=True)
        counts = self.counts[rows]
        first = self._first_labels[rows]
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return ImageTable(
            tuple(self.paths[i] for i in used),
            numbers.astype(np.int32),
            self.offsets[rows],
            self.sizes[rows],
            self.names[rows],
            self.labels[np.repeat(first, counts) + inside],
            counts,
        )

    @functools.cached_property
    def _first_labels(self) -> np.ndarray:
        """Index in `labels` of each image's first label: `[N] int64`."""
        return np.cumsum(self.counts, dtype=np.int64) - self.counts

    def hash_order(self) -> np.ndarray:
        """Returns the rows sorted by the SHA-256 of their names, its first 8 bytes.

        Equal hashes are sorted by name, equal names as they are listed.
        """
        digests = (hashlib.sha256(name).digest()[:8] for name in self.names.tolist())
        keys = np.frombuffer(b"".join(digests), ">u8")
        return np.lexsort((self.names, keys))

    def split_labels(self) -> list[list[int]]:
        """Returns the classes of every image."""
        flat, ends = self.labels.tolist(), np.cumsum(self.counts).tolist()
        return [flat[end - n : end] for end, n in zip(ends, self.counts, strict=True)]

    def digest(self) -> str:
        """Returns the SHA-256 of all columns but the paths: archives may be moved."""
        columns = (self.files, self.offsets, self.sizes, self.labels, self.counts)
        state = hashlib.sha256(b"\n".join(self.names.tolist()))
        for column in columns:
            state.update(column.tobytes())
        return state.hexdigest()

    def to_bytes(self) -> bytes:
        """Returns the columns as the content of one file."""
        stream = io.BytesIO()
        columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        np.savez(stream, **{**columns, "paths": np.array(self.paths, np.str_)})
        return stream.getvalue()


def from_bytes(content: bytes) -> ImageTable:
    """Returns the inverse of `ImageTable.to_bytes`."""
    with np.load(io.BytesIO(content), allow_pickle=False) as saved:
        columns = {f.name: saved[f.name] for f in dataclasses.fields(ImageTable)}
    return ImageTable(**{**columns, "paths": tuple(columns["paths"].tolist())})


def from_rows(
    paths: Sequence[str], rows: Sequence[tuple[int, int, int, str, int]]
) -> ImageTable:
    """Returns images of one class each, from (file, offset, size, name, class)."""
    files, offsets, sizes, names, labels = zip(*rows, strict=True) if rows else [()] * 5
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    return ImageTable(
        tuple(paths),
        np.array(files, np.int32),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array(encoded, np.bytes_),
        np.array(labels, np.int32),
        np.ones(len(encoded), np.int32),
    )


def join(parts: Sequence[ImageTable]) -> ImageTable:
    """Returns the images of all parts, one after another."""
    first = np.cumsum([0, *(len(part.paths) for part in parts)])
    files = [p.files + n for p, n in zip(parts, first[:-1].tolist(), strict=True)]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("offsets", "sizes", "names", "labels", "counts")
    }
    paths = tuple(path for part in parts for path in part.paths)
    return ImageTable(paths, np.concatenate(files).astype(np.int32), **columns)


@dataclasses.dataclass(frozen=True)
class MergedTable:
    """Images without duplicates, and the number of duplicates by kind."""

    table: ImageTable  # one image of each group, with all labels of the group, sorted
    same_class: int  # duplicates in the same class, left out
    other_classes: int  # duplicates in another class, which became labels


def merge_equal(table: ImageTable, digests: np.ndarray) -> MergedTable:
    """Merges images with equal bytes into one.

    The image that is first in `hash_order` gives location and name.

    Args:
        table: images of one label each.
        digests: `[N, 32] uint8`, SHA-256 of each image's bytes.
    """
    order = table.hash_order()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    words = np.ascontiguousarray(digests).view(np.uint64)  # [N, 4]
    by_content = np.lexsort((rank, *words.T))
    is_first = np.ones(len(table), bool)
    is_first[1:] = (words[by_content][1:] != words[by_content][:-1]).any(-1)
    group = np.cumsum(is_first) - 1  # of each row of `by_content`
    classes = int(table.labels.max(initial=0)) + 1
    pairs = np.unique(group * classes + table.labels[by_content])
    counts = np.bincount(pairs // classes, minlength=int(is_first.sum()))
    merged = dataclasses.replace(
        table.take(by_content[is_first]),
        labels=(pairs % classes).astype(np.int32),
        counts=counts.astype(np.int32),
    )
    return MergedTable(merged, len(table) - len(pairs), len(pairs) - len(merged))

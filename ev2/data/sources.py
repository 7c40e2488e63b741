"""Sources of pictures: one interface, random access by index, opened from the config.

A source holds the encoded pictures of one split in a fixed order; the pipeline asks
for them by position. Opening reads names and counts only, never pictures, and is
done once per process: files that appear later do not change the order of a run.
"""

import dataclasses
import functools
import json
import os
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from google.protobuf import message

from ev2 import errors
from ev2.data import file_list as listed
from ev2.data import image_folder as folder
from ev2.data import imagenet_classes, tfrecord
from ev2.data import storage as files
from ev2.data.tensorflow import tf

SOURCES = ("embedded", "tfds", "folder", "csv", "tar", "tfrecord", "synthetic")
SPLITS = ("eval", "train", "all", "watch")
OWN_IMAGES = ("folder", *listed.KINDS)  # may come without a split
EMBEDDED = "fashion_mnist"
EMBEDDED_FOLDER = os.path.join(os.path.dirname(__file__), EMBEDDED)
# Splits of the pictures inside the package: files, and which of their four shards.
_EMBEDDED_SPLITS = {
    "train": ("train", slice(None)),
    "train[:75%]": ("train", slice(3)),
    "train[75%:]": ("train", slice(3, None)),
    "validation": ("validation", slice(None)),
}
SYNTHETIC_SIDE = 32  # px


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a run needs to know of its data before reading any of it."""

    num_train_images: int
    num_eval_images: int
    num_classes: int
    class_names: tuple[str, ...]  # numbers where the source has no names


class Source(Protocol):
    """The encoded pictures of one split."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Encoded pictures and labels; b"" where a record is damaged.

        Labels are `[N] int32`, or `[N, L] int32` where pictures may have up to L:
        in ascending order, then -1.

        Raises:
            InputError: a file cannot be read, or a label is out of range.
        """
        ...

    def name(self, index: int) -> str:
        """Where the picture lies, for people."""
        ...


def describe(config: Any) -> DatasetInfo:
    """Returns counts and class names of the configured data.

    Declared counts are taken as they are, without touching the data, for sources
    that can be elsewhere when a run is planned ("tfds", "tfrecord", "synthetic");
    class names are then those of `labels.txt` in `data.path`, or of the description
    of a prepared TFDS dataset, if they can be read, else numbers.

    Raises:
        InputError: unknown or unreadable source, or it disagrees with a declared
            count.
    """
    data = config.data
    errors.check_choice("data.source", data.source, SOURCES)
    counts = (data.num_train_images, data.num_eval_images, data.num_classes)
    if data.source in ("tfds", "tfrecord", "synthetic") and all(counts):
        names = _read_names(data)
        if names is None or len(names) != data.num_classes:
            names = imagenet_classes.default_class_names(data.num_classes)
        return DatasetInfo(*counts, names)
    train, evaluation = open_source(config, "train"), open_source(config, "eval")
    names = train.class_names
    return DatasetInfo(len(train), len(evaluation), len(names), names)


def _read_names(data: Any) -> tuple[str, ...] | None:
    """Class names, without reading a record; None if nothing tells them."""
    names = _read_labels(data.path) if data.path else None
    if names is not None or data.source != "tfds":
        return names
    from ev2.data import tfds  # TFDS takes a second to import

    try:
        return tfds.read_class_names(data.name, data.path)
    except errors.InputError:  # not prepared on this machine
        return None


def read_class_names(config: Any, split: str) -> tuple[str, ...]:
    """Returns the names of the classes of a split; numbers where it has no names.

    Raises:
        InputError: as `open_source`.
    """
    return open_source(config, split).class_names


def is_undivided(config: Any) -> bool:
    """Whether the data are a folder, a list or an archive without train and val."""
    data = config.data
    if data.source in listed.KINDS:
        return not listed.has_splits(data.source, data.path, data.eval_split)
    is_folder = data.source == "folder"
    return is_folder and not folder.has_splits(data.path, data.eval_split)


def open_source(config: Any, split: str) -> Source:
    """Opens a split of the data: one of `SPLITS`.

    "watch" is `eval.split`, for evaluations while training; "all" is of what is
    undivided.

    Raises:
        InputError: as `describe`.
    """
    data = config.data
    errors.check_choice("data.source", data.source, SOURCES)
    if split == "all" and data.source not in OWN_IMAGES:
        raise errors.InputError(
            f"split: 'all' is for data.source {', '.join(OWN_IMAGES)}, not"
            f" {data.source!r}; choose eval or train"
        )
    split_name = data.train_split if split == "train" else data.eval_split
    if split == "watch":
        split_name = config.eval.split
    count_key = f"num_{split}_images"
    declared = data[count_key] if split in ("train", "eval") else 0
    source = _open(
        data.source,
        data.name,
        data.path,
        split,
        split_name,
        data.num_classes,
        declared,
        data.eval_fraction,
        data.max_labels,
    )
    _check_declared(f"data.{count_key}", declared, len(source))
    _check_declared("data.num_classes", data.num_classes, len(source.class_names))
    if len(source.class_names) < 2:
        raise errors.InputError(
            f"data.source: {data.source!r} has one class; give at least two"
        )
    return source


def _check_declared(key: str, declared: int, found: int) -> None:
    if declared and declared != found:
        raise errors.InputError(
            f"{key}: {declared} declared, but the source has {found}; correct it or"
            " set it to 0 to take the source's"
        )


@functools.lru_cache(maxsize=16)
def _open(
    kind, name, path, split, split_name, num_classes, num_images, fraction, max_labels
):
    if kind == "embedded":
        if name not in ("", EMBEDDED):
            raise errors.InputError(
                f"data.name: {name!r} is not embedded; choose {EMBEDDED!r}"
            )
        return open_embedded(split_name)
    if kind == "tfds":
        from ev2.data import tfds  # TFDS takes a second to import

        return tfds.open_tfds(name, path, split_name)
    if kind == "synthetic":
        return SyntheticSource(num_images, num_classes, split)
    if not path:
        raise errors.InputError(
            f"data.path: '' with data.source {kind!r}; give the folder or the file of"
            " the data"
        )
    if kind == "folder":
        return folder.FolderSource(path, split, split_name, fraction)
    if kind in listed.KINDS:
        return listed.ListedSource(kind, path, split, split_name, fraction)
    return _open_shards(path, split_name, num_classes, max_labels=max_labels)


def open_embedded(split: str) -> "RecordSource":
    """Opens the pictures inside the package: "train", "validation", or of the former
    the first three quarters, "train[:75%]", or the last, "train[75%:]".
    """
    errors.check_choice("data: split", split, _EMBEDDED_SPLITS)
    name, shards = _EMBEDDED_SPLITS[split]
    return _open_shards(EMBEDDED_FOLDER, name, 0, shards=shards, keep_index=False)


def _open_shards(
    path: str,
    split: str,
    num_classes: int,
    *,
    max_labels: int = 1,
    shards: slice = slice(None),
    keep_index: bool = True,
) -> "RecordSource":
    paths = tfrecord.find_shards(path, split)[shards]
    names = _read_labels(path)
    if names is None:
        if not num_classes:
            raise errors.InputError(
                "data.num_classes: 0, but TFRecord shards do not name their classes;"
                f" give the number, or put labels.txt (a name per line) into {path}"
            )
        names = imagenet_classes.default_class_names(num_classes)
    _check_max_labels(path, max_labels)
    records = tfrecord.open_records(paths, keep_index=keep_index)
    return RecordSource(records, names, max_labels=max_labels)


def _check_max_labels(path: str, max_labels: int) -> None:
    """Refuses fewer labels than a picture has, by the manifest if there is one."""
    try:
        manifest = json.loads(files.read_file(os.path.join(path, "manifest.json")))
        found = int(manifest.get("max_labels", 1))
    except (OSError, tf.errors.OpError, ValueError, AttributeError, TypeError):
        return
    if found > max_labels:
        raise errors.InputError(
            f"data.max_labels: {max_labels}, but pictures in {path!r} have up to"
            f" {found} labels; give at least that many"
        )


def _read_labels(path: str) -> tuple[str, ...] | None:
    """Class names from `labels.txt`, one per line; None if there is none."""
    try:
        text = files.read_file(os.path.join(path, "labels.txt"))
    except (OSError, tf.errors.OpError):
        return None
    return tuple(text.decode("utf-8").splitlines()) or None


class RecordSource:
    """Pictures in records that hold a `tf.train.Example`.

    The defaults are the ImageNet layout: `image/encoded`, and `image/class/label`
    counted from 1. With `max_labels` above 1 a picture may have several.
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
        """See `Source.read`."""
        pictures, labels = [], np.full((len(indices), self._max_labels), -1, np.int32)
        for i, record in enumerate(self._records.read(indices)):
            try:
                feature = tf.train.Example.FromString(record).features.feature
            except message.DecodeError:  # the record is damaged
                pictures.append(b"")
                labels[i, 0] = 0
                continue
            image, label = feature.get(self._image_key), feature.get(self._label_key)
            if image is None or label is None or not label.int64_list.value:
                missing = self._image_key if image is None else self._label_key
                raise errors.InputError(
                    f"data.path: {self.name(indices[i])} has no feature {missing!r}"
                    f" (it has {', '.join(sorted(feature)) or 'none'})"
                )
            found = self._classes_of(label.int64_list.value, indices[i])
            labels[i, : len(found)] = found
            values = image.bytes_list.value
            pictures.append(values[0] if values else b"")
        return pictures, labels if self._max_labels > 1 else labels[:, 0]

    def name(self, index: int) -> str:
        """See `Source.name`."""
        return self._records.name(index)

    def _classes_of(self, labels: Sequence[int], index: int) -> list[int]:
        """The classes of one picture, each once, in ascending order."""
        last = self._first_label + len(self.class_names) - 1
        for label in labels:
            if not self._first_label <= label <= last:
                raise errors.InputError(
                    f"data.num_classes: {len(self.class_names)}, but"
                    f" {self.name(index)} has label {label}; allowed is"
                    f" {self._first_label}..{last}"
                )
        found = sorted({label - self._first_label for label in labels})
        if len(found) > self._max_labels:
            raise errors.InputError(
                f"data.max_labels: {self._max_labels}, but {self.name(index)} has"
                f" {len(found)} labels; give at least that many"
            )
        return found


class SyntheticSource:
    """Pictures made from their index: blocks of colour that depend on the class.

    They cost next to nothing to make and to decode, so what is measured with them
    is the rest of the program; and they can be learnt, so a loss that does not fall
    is a fault.
    """

    def __init__(self, num_images: int, num_classes: int, split: str):
        for key, value in (
            (f"num_{split}_images", num_images),
            ("num_classes", num_classes),
        ):
            if value <= 0:
                raise errors.InputError(
                    f"data.{key}: {value}, but data.source 'synthetic' has no files to"
                    " count; give a number above 0"
                )
        self.class_names = imagenet_classes.default_class_names(num_classes)
        self._num_images = num_images
        self._split = split

    def __len__(self) -> int:
        return self._num_images

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """See `Source.read`."""
        labels = (indices % len(self.class_names)).astype(np.int32)
        return [self._picture(int(i)) for i in indices], labels

    def name(self, index: int) -> str:
        """See `Source.name`."""
        return f"synthetic {self._split} picture {index}"

    def _picture(self, index: int) -> bytes:
        """A BMP of 4 x 4 blocks: the class's colours, and noise of the picture."""
        blocks = np.random.RandomState(index % len(self.class_names))
        noise = np.random.RandomState([index, self._split == "train"])
        pixels = blocks.randint(32, 224, (4, 4, 3)) + noise.randint(-32, 32, (4, 4, 3))
        repeat = SYNTHETIC_SIDE // 4
        return _bmp(pixels.astype(np.uint8).repeat(repeat, 0).repeat(repeat, 1))


def _bmp(pixels: np.ndarray) -> bytes:
    """`[H, W, 3] uint8` as a 24-bit BMP; W must be a multiple of 4 (no row padding)."""
    height, width, _ = pixels.shape
    body = pixels[::-1, :, ::-1].tobytes()  # bottom row first, blue first
    head = struct.pack("<2sIHHI", b"BM", 54 + len(body), 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(body), *[0] * 4)
    return head + info + body

"""Opens sources of images: one interface, random access by index.

A source holds the encoded images of one split in a fixed order; the pipeline reads
them by index. Opening reads names and counts only, never images, and is done once per
process: files that appear later do not change the order of a run.
"""

import dataclasses
import functools
import io
import json
import os
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ev2 import errors
from ev2.data import file_list, imagenet_classes, storage, tfrecord

SPLITS = ("eval", "train", "all", "watch")
OWN_IMAGES = file_list.KINDS  # sources that may come without a split
EMBEDDED = "fashion_mnist"
EMBEDDED_FOLDER = os.path.join(os.path.dirname(__file__), EMBEDDED)
# Splits of the images inside the package: files, and which of their four shards.
_EMBEDDED_SPLITS = {
    "train": ("train", slice(None)),
    "train[:75%]": ("train", slice(3)),
    "train[75%:]": ("train", slice(3, None)),
    "validation": ("validation", slice(None)),
}
SYNTHETIC_SIDE = 32  # px


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Counts and class names of the configured data."""

    num_train_images: int
    num_eval_images: int
    num_classes: int
    class_names: tuple[str, ...]  # numbers where the source has no names


class Source(Protocol):
    """The encoded images of one split."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Returns encoded images and labels; b"" for a damaged record.

        Labels are `[N] int32`, or `[N, L] int32` where images may have up to L:
        in ascending order, then -1.

        Raises:
            InputError: a file cannot be read, or a label is out of range.
        """
        ...

    def name(self, index: int) -> str:
        """Returns the location of the image, for messages."""
        ...


def describe(config: Any) -> DatasetInfo:
    """Returns counts and class names of the configured data.

    Declared counts are used as they are, without opening the data, for sources that
    can be elsewhere when a run is planned ("tfds", "tfrecord", "synthetic"). Class
    names then come from `labels.txt` in `data.path` or the metadata of a prepared TFDS
    dataset if they can be read, else they are numbers.

    Raises:
        InputError: unreadable source, or one that disagrees with a declared count.
    """
    data = config.data
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
    """Returns class names without reading a record; None if there are none."""
    names = _read_labels(data.path) if data.path else None
    if names is not None or data.source != "tfds":
        return names
    from ev2.data import tfds  # TFDS takes a second to import

    try:
        return tfds.read_class_names(data.name, data.path)
    except errors.InputError:  # not prepared on this machine
        return None


def is_undivided(config: Any) -> bool:
    """Returns True for a folder, list or archive without train and val."""
    data = config.data
    if data.source not in OWN_IMAGES:
        return False
    splits = file_list.find_splits(data.source, data.path, "eval", data.eval_split)
    return splits is None


def open_source(config: Any, split: str) -> Source:
    """Opens a split of the data: one of `SPLITS`.

    "watch" is `eval.split`, for evaluations during training; "all" is for undivided
    data.

    Raises:
        InputError: see `describe`.
    """
    data = config.data
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
        *(data.source, data.name, data.path, split, split_name),
        *(data.num_classes, declared, data.eval_fraction, data.max_labels),
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
) -> Source:
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
    if kind in file_list.KINDS:
        return file_list.ListedImages(kind, path, split, split_name, fraction)
    return _open_shards(path, split_name, num_classes, max_labels=max_labels)


def open_embedded(split: str) -> tfrecord.RecordSource:
    """Opens the images inside the package.

    Args:
        split: "train", "validation", "train[:75%]" or "train[75%:]".

    Raises:
        InputError: another split.
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
) -> tfrecord.RecordSource:
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
    return tfrecord.RecordSource(records, names, max_labels=max_labels)


def _check_max_labels(path: str, max_labels: int) -> None:
    """Raises InputError if images have more labels, by the manifest if there is one."""
    try:
        manifest = json.loads(storage.read_file(os.path.join(path, "manifest.json")))
        found = int(manifest.get("max_labels", 1))
    except (*storage.ERRORS, ValueError, AttributeError, TypeError):
        return
    if found > max_labels:
        raise errors.InputError(
            f"data.max_labels: {max_labels}, but images in {path!r} have up to"
            f" {found} labels; give at least that many"
        )


def _read_labels(path: str) -> tuple[str, ...] | None:
    """Returns class names from `labels.txt`, one per line; None if there is none."""
    try:
        text = storage.read_file(os.path.join(path, "labels.txt"))
    except storage.ERRORS:
        return None
    return tuple(text.decode("utf-8").splitlines()) or None


class SyntheticSource:
    """Images computed from their index: blocks of colour that depend on the class.

    They cost little to make and decode, so they measure the rest of the program. They
    can be learnt, so a loss that does not fall shows a fault.
    """

    def __init__(self, num_images: int, num_classes: int, split: str):
        counts = {f"num_{split}_images": num_images, "num_classes": num_classes}
        for key, value in counts.items():
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
        return [self._encode(int(i)) for i in indices], labels

    def name(self, index: int) -> str:
        """See `Source.name`."""
        return f"synthetic {self._split} image {index}"

    def _encode(self, index: int) -> bytes:
        """Encodes 4 x 4 blocks as BMP: colours of the class, and noise of the image."""
        blocks = np.random.RandomState(index % len(self.class_names))
        noise = np.random.RandomState([index, self._split == "train"])
        pixels = blocks.randint(32, 224, (4, 4, 3)) + noise.randint(-32, 32, (4, 4, 3))
        repeat = SYNTHETIC_SIDE // 4
        pixels = pixels.astype(np.uint8).repeat(repeat, 0).repeat(repeat, 1)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "BMP")
        return stream.getvalue()

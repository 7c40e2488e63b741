"""Opens datasets that TensorFlow Datasets has prepared, record by record.

Nothing is downloaded or generated. TFDS gives the files and features of a split; the
records are read like any TFRecord shard, or by array_record's own reader.
"""

import difflib
import os
from typing import Any

import numpy as np
import tensorflow_datasets

from ev2 import errors
from ev2.data import tfrecord


def open_tfds(name: str, data_dir: str, split: str) -> tfrecord.RecordSource:
    """Opens a split, slices such as "train[:98%]" included.

    Args:
        name: TFDS name, with "/config" and ":version" if wanted.
        data_dir: directory of TFDS's data; "" = its default (`TFDS_DATA_DIR`, or
            `~/tensorflow_datasets`).
        split: name or slice.

    Raises:
        InputError: unknown name or split, a dataset that is not prepared, or features
            other than one image and one class.
    """
    builder = _open_builder(name, data_dir)
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError):
        raise errors.InputError(
            f"data.name: {name!r} has no split {split!r}; it has"
            f" {', '.join(builder.info.splits)}, and slices such as 'train[:90%]'"
        ) from None
    image_key, label_key = _keys(name, builder.info)
    return tfrecord.RecordSource(
        _open_records(info, builder.info.file_format),
        tuple(builder.info.features[label_key].names),
        image_key=image_key,
        label_key=label_key,
        first_label=0,
    )


def read_class_names(name: str, data_dir: str) -> tuple[str, ...]:
    """Returns the names of the classes, from the dataset's metadata alone.

    Args and errors: see `open_tfds`.
    """
    info = _open_builder(name, data_dir).info
    return tuple(info.features[_keys(name, info)[1]].names)


def _open_builder(name: str, data_dir: str) -> Any:
    if not name:
        raise errors.InputError("data.name: ''; give the name of a TFDS dataset")
    arguments = {"data_dir": data_dir} if data_dir else {}
    open_builder = tensorflow_datasets.core.read_only_builder.builder_from_files
    try:
        return open_builder(name, **arguments)
    except tensorflow_datasets.core.DatasetNotFoundError:
        pass
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise errors.InputError(f"data.name: {name!r}: {reason}") from None
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    plain = name.split(":")[0].split("/")[0]
    if plain not in known:
        near = difflib.get_close_matches(plain, known)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise errors.InputError(
            f"data.name: {name!r} is neither prepared in {_directory(data_dir)} nor a"
            f" dataset of TFDS{meant}"
        )
    option = f", data_dir={data_dir!r}" if data_dir else ""
    raise errors.InputError(
        f"data.name: {name!r} is not prepared in {_directory(data_dir)}; run in Python:"
        f" tensorflow_datasets.builder({name!r}{option}).download_and_prepare(), or"
        " make shards (ev2 prepare --help) and give data.source=tfrecord and data.path"
    )


def _directory(data_dir: str) -> str:
    return data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Returns the names of the image and the class among the features."""
    image_key, label_key = info.supervised_keys or ("image", "label")
    features = tensorflow_datasets.features
    named: dict[str, Any] = dict(info.features)
    image: Any = named.get(image_key)
    label: Any = named.get(label_key)
    is_image = isinstance(image, features.Image)
    if not is_image or image.get_tensor_info().dtype != np.uint8:
        raise errors.InputError(
            f"data.name: {name!r} has no 8-bit image under {image_key!r}; choose a"
            " dataset for image classification"
        )
    if not isinstance(label, features.ClassLabel) or not label.names:
        raise errors.InputError(
            f"data.name: {name!r} has no single class under {label_key!r}; choose a"
            " dataset for image classification"
        )
    return image_key, label_key


def _open_records(split_info: Any, file_format: Any) -> Any:
    """Opens the records of a split, or the records of a slice that TFDS lists."""
    instructions = split_info.file_instructions
    paths = [str(i.filename) for i in instructions]
    kind = file_format.value
    if kind == "tfrecord":
        records: Any = tfrecord.open_records(paths)
    elif kind == "array_record":
        records = ArrayRecordFiles(paths)
    else:
        raise errors.InputError(
            f"data.name: file format {kind!r} cannot be read by index; prepare it as"
            " tfrecord or array_record"
        )
    ranges, first = [], 0
    for instruction, count in zip(instructions, records.counts, strict=True):
        take = count - instruction.skip if instruction.take < 0 else instruction.take
        ranges.append(first + instruction.skip + np.arange(take))
        first += count
    chosen = np.concatenate(ranges)
    return records if len(chosen) == len(records) else Selection(records, chosen)


class Selection:
    """A part of the records of another sequence, renumbered."""

    def __init__(self, records: Any, chosen: np.ndarray):
        self._records, self._chosen = records, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Returns the payloads of the records, in the order of `indices`."""
        return self._records.read(self._chosen[indices])

    def name(self, index: int) -> str:
        """Returns the shard and the number of the record."""
        return self._records.name(self._chosen[index])


class ArrayRecordFiles(tfrecord.Shards):
    """The records of array_record files, which have their own index."""

    def __init__(self, paths: list[str]):
        from array_record.python import array_record_module  # part of TFDS

        self._readers = [array_record_module.ArrayRecordReader(p) for p in paths]
        counts = [reader.num_records() for reader in self._readers]
        super().__init__(paths, np.array(counts, np.int64))

    def read(self, indices: np.ndarray) -> list[bytes]:
        """Returns the payloads of the records, in the order of `indices`."""
        payloads: list[bytes] = [b""] * len(indices)
        shards, numbers = self.locate(indices)
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            records = self._readers[shard].read(numbers[rows].tolist())
            for row, payload in zip(rows.tolist(), records, strict=True):
                payloads[row] = payload
        return payloads

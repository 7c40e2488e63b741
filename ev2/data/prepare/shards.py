"""Writes and checks records and shards in ImageNet's layout.

A preparation keeps its state in a folder inside `out`: for each task a file `NAME.npz`
with the locations of its images, and a file with its result. A task with a result is
done; results are written last, atomically.
"""

import functools
import hashlib
import itertools
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from google.protobuf import message

from ev2 import errors
from ev2.data import storage
from ev2.data.prepare import image_table
from ev2.data.tensorflow import tf

STATE = ".unfinished"  # folder of the state
PLAN = "plan.json"
HASH_BLOCK_BYTES = 1 << 20


def example(
    encoded: bytes,
    labels: Sequence[int],
    *,
    filename: bytes = b"",
    synsets: Sequence[str] = (),
) -> bytes:
    """Returns one record: an encoded image, and its labels counted from 1.

    Args:
        encoded: the image as it is.
        labels: classes counted from 0.
        filename: its name; b"" = without.
        synsets: WordNet ids of the labels; () = without.
    """
    values = {
        "image/encoded": _bytes([encoded]),
        "image/class/label": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label + 1 for label in labels])
        ),
    }
    if filename:
        values["image/filename"] = _bytes([filename])
    if synsets:
        values["image/class/synset"] = _bytes([name.encode() for name in synsets])
    record = tf.train.Example(features=tf.train.Features(feature=values))
    return record.SerializeToString(deterministic=True)


def _bytes(values: list[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def write_records(path: str, records: Iterable[bytes]) -> str:
    """Writes a TFRecord file and returns its SHA-256."""
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    return hash_file(path)


def write_split(
    folder: str, split: str, rows: Sequence[Any], count: int, make_record: Callable
) -> list[dict[str, Any]]:
    """Writes rows, in order, to the shards of a split, of equal numbers.

    Args:
        folder: folder of the shards.
        split: its name, as in the names of the shards.
        rows: images of the split.
        count: number of shards.
        make_record: function of a row to its record.

    Returns:
        Name, number of records and SHA-256 of each shard.
    """
    bounds = [len(rows) * i // count for i in range(count + 1)]
    written = []
    for shard, (first, end) in enumerate(itertools.pairwise(bounds)):
        name = shard_name(split, shard, count)
        records = map(make_record, rows[first:end])
        digest = write_records(os.path.join(folder, name), records)
        written.append({"file": name, "records": end - first, "sha256": digest})
    return written


def hash_file(path: str) -> str:
    """Returns the SHA-256 of a file."""
    state = hashlib.sha256()
    with storage.open_file(path) as file:
        while block := file.read(HASH_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def shard_name(split: str, number: int, of: int) -> str:
    """Returns the name of a shard, numbers counted from 0."""
    return f"{split}-{number:05d}-of-{of:05d}"


def in_state(out: str, name: str) -> str:
    """Returns the path of a file of the state."""
    return os.path.join(out, STATE, name)


def read_state(out: str, name: str) -> Any:
    """Returns the content of a JSON file of the state."""
    return json.loads(storage.read_file(in_state(out, name)))


def write_state(out: str, name: str, content: bytes) -> None:
    """Writes a file of the state atomically."""
    storage.write_file(in_state(out, name), content)


def digest_images(out: str, name: str) -> None:
    """Writes `NAME.sha256`: `[N, 32] uint8`, the SHA-256 of each image's bytes."""
    part = _read_table(out, name)
    read = functools.partial(_read_image, part, storage.Reader(part.paths))
    digests = storage.map_parallel(
        lambda row: hashlib.sha256(read(row)).digest(), range(len(part))
    )
    write_state(out, f"{name}.sha256", b"".join(digests))


def write_shard(out: str, name: str) -> None:
    """Writes the shard and `NAME.json`: file, records, SHA-256, bytes."""
    part = _read_table(out, name)
    plan = read_state(out, PLAN)
    temporary = in_state(out, f"{name}.{uuid.uuid4().hex}.tmp")
    try:
        digest = write_records(temporary, _records(part, plan))
    except BaseException:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)  # the disk may be full
        raise
    made = {"file": name, "records": len(part), "sha256": digest}
    made["bytes"] = storage.size(temporary)
    tf.io.gfile.rename(temporary, os.path.join(out, name), overwrite=True)
    write_state(out, f"{name}.json", json.dumps(made).encode())


def _records(part: image_table.ImageTable, plan: dict) -> Iterable[bytes]:
    """Yields the records of a shard in order; reads images in the order of offsets."""
    read = functools.partial(_read_image, part, storage.Reader(part.paths))
    rows = np.lexsort((part.offsets, part.files)).tolist()
    images = dict(zip(rows, storage.map_parallel(read, rows), strict=True))
    names, classes = part.names.tolist(), plan["classes"]
    for row, labels in enumerate(part.split_labels()):
        synsets = [classes[label] for label in labels] if plan["synsets"] else ()
        encoded = images.pop(row)
        yield example(encoded, labels, filename=names[row], synsets=synsets)


def _read_table(out: str, name: str) -> image_table.ImageTable:
    return image_table.from_bytes(storage.read_file(in_state(out, f"{name}.npz")))


def _read_image(
    part: image_table.ImageTable, reader: storage.Reader, row: int
) -> bytes:
    size = int(part.sizes[row])
    encoded = reader.read(int(part.files[row]), int(part.offsets[row]), size)
    if len(encoded) != size:
        path = part.paths[part.files[row]]
        raise errors.InputError(
            f"source: {path!r} has become shorter since the preparation began"
        )
    return encoded


def check_shard(out: str, name: str) -> None:
    """Reads a shard again and writes `NAME.checked`: its problem, or ""."""
    classes = read_state(out, PLAN)["classes"]
    made = read_state(out, f"{name}.json")
    problem = find_problem(os.path.join(out, name), made, len(classes))
    write_state(out, f"{name}.checked", problem.encode())


def find_problem(path: str, made: dict, num_classes: int) -> str:
    """Returns the first difference from what was written: CRCs, labels, SHA-256."""
    count = 0
    try:
        for record in tf.data.TFRecordDataset(path):  # which checks both CRCs
            feature = tf.train.Example.FromString(record.numpy()).features.feature
            labels = feature["image/class/label"].int64_list.value
            if not labels or not 1 <= min(labels) <= max(labels) <= num_classes:
                return f"record {count} has labels {list(labels)}"
            if not any(feature["image/encoded"].bytes_list.value):
                return f"record {count} has no image"
            count += 1
        if count != made["records"]:
            return f"{count} records, {made['records']} were written"
        if hash_file(path) != made["sha256"]:
            return "its SHA-256 differs from the one when it was written"
    except (*storage.ERRORS, message.DecodeError) as error:
        # TensorFlow puts the names of its nodes around its message.
        reason = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", str(error))
        return f"record {count} cannot be read ({reason})"
    return ""

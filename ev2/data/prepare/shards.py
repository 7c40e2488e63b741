"""Records and shards in ImageNet's layout, and what a worker does with one of them.

A preparation keeps its state in a folder inside the one it fills: for each task a file
`NAME.npz` with the places of its pictures, and one with its result. A task whose result
is there is done; a result is written last, in one move.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf import message

from ev2 import errors
from ev2.data import storage as files
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
    """One record in ImageNet's layout: a picture, and its labels counted from 1.

    Args:
        encoded: the picture as it is.
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
    """Writes rows, in order, to the shards of a split, as equal as can be.

    Args:
        folder: where to.
        split: its name, as in the shards' names.
        rows: of the split.
        count: shards.
        make_record: from a row to its record.

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


def check_free(out: str) -> None:
    """Raises InputError if the local folder `out` holds anything."""
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise errors.InputError(
            f"out: {out!r} exists and is not an empty folder; nothing is overwritten,"
            " give a new folder"
        )


@contextlib.contextmanager
def new_folder(out: str) -> Iterator[str]:
    """Gives a local folder to fill; it becomes `out` at the end, or goes.

    Raises:
        InputError: `out` holds anything, or cannot be made.
    """
    check_free(out)
    parent = os.path.dirname(os.path.abspath(out))
    try:
        os.makedirs(parent, exist_ok=True)
        partial = tempfile.mkdtemp(prefix=".ev2-prepare-", dir=parent)
    except OSError as error:
        raise errors.InputError(f"out: cannot write to {parent!r}: {error}") from error
    try:
        yield partial
        os.chmod(partial, 0o755)  # mkdtemp makes it private
        os.rename(partial, out)  # fails if something appeared in `out` meanwhile
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_text(folder: str, name: str, text: str) -> None:
    """Writes a text file."""
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)


def hash_file(path: str) -> str:
    """SHA-256 of a file."""
    state = hashlib.sha256()
    with files.open_file(path) as file:
        while block := file.read(HASH_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def shard_name(split: str, number: int, of: int) -> str:
    """Name of a shard, numbers counted from 0."""
    return f"{split}-{number:05d}-of-{of:05d}"


def in_state(out: str, name: str) -> str:
    """Path of a file of the state."""
    return os.path.join(out, STATE, name)


def digest_pictures(out: str, name: str) -> None:
    """Writes `NAME.sha256`: `[N, 32] uint8`, the SHA-256 of each picture's bytes."""
    part = _read_places(out, name)
    read = functools.partial(_read_picture, part, files.Reader(part.paths))
    digests = files.map_parallel(lambda row: _sha256(read(row)), range(len(part)))
    files.write_file(in_state(out, f"{name}.sha256"), b"".join(digests))


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def write_shard(out: str, name: str) -> None:
    """Writes the shard and `NAME.json`: file, records, SHA-256, bytes."""
    part = _read_places(out, name)
    plan = json.loads(files.read_file(in_state(out, PLAN)))
    temporary = in_state(out, f"{name}.{uuid.uuid4().hex}.tmp")
    try:
        digest = write_records(temporary, _records(part, plan))
    except BaseException:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)  # the disk may be full
        raise
    made = {
        "file": name,
        "records": len(part),
        "sha256": digest,
        "bytes": files.size(temporary),
    }
    tf.io.gfile.rename(temporary, os.path.join(out, name), overwrite=True)
    files.write_file(in_state(out, f"{name}.json"), json.dumps(made).encode())


def _records(part: image_table.ImageTable, plan: dict) -> Iterable[bytes]:
    """The records of a shard in order; the pictures are read in the order they lie."""
    read = functools.partial(_read_picture, part, files.Reader(part.paths))
    rows = np.lexsort((part.offsets, part.files)).tolist()
    pictures = dict(zip(rows, files.map_parallel(read, rows), strict=True))
    names, classes = part.names.tolist(), plan["classes"]
    for row, labels in enumerate(part.split_labels()):
        synsets = [classes[label] for label in labels] if plan["synsets"] else ()
        encoded = pictures.pop(row)
        yield example(encoded, labels, filename=names[row], synsets=synsets)


def _read_places(out: str, name: str) -> image_table.ImageTable:
    return image_table.from_bytes(files.read_file(in_state(out, f"{name}.npz")))


def _read_picture(
    part: image_table.ImageTable, reader: files.Reader, row: int
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
    """Reads a shard again and writes `NAME.checked`: what is wrong with it, or ""."""
    made = json.loads(files.read_file(in_state(out, f"{name}.json")))
    plan = json.loads(files.read_file(in_state(out, PLAN)))
    problem = find_problem(os.path.join(out, name), made, len(plan["classes"]))
    files.write_file(in_state(out, f"{name}.checked"), problem.encode())


def find_problem(path: str, made: dict, num_classes: int) -> str:
    """Why a shard is not what was written: CRCs, labels, SHA-256; "" if it is."""
    count = 0
    try:
        for record in tf.data.TFRecordDataset(path):  # which checks both CRCs
            feature = tf.train.Example.FromString(record.numpy()).features.feature
            labels = feature["image/class/label"].int64_list.value
            if not labels or not 1 <= min(labels) <= max(labels) <= num_classes:
                return f"record {count} has labels {list(labels)}"
            if not any(feature["image/encoded"].bytes_list.value):
                return f"record {count} has no picture"
            count += 1
        if count != made["records"]:
            return f"{count} records, {made['records']} were written"
        if hash_file(path) != made["sha256"]:
            return "its SHA-256 is not that of what was written"
    except (OSError, tf.errors.OpError, message.DecodeError) as error:
        # TensorFlow puts the names of its nodes around what it says.
        said = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", str(error))
        return f"record {count} cannot be read ({said})"
    return ""

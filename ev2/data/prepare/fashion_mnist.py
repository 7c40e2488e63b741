"""Prepares the embedded images, a part of Fashion-MNIST as PNGs in shards."""

import gzip
import io
import os
import shutil
import struct
import zlib

import numpy as np
from PIL import Image

from ev2 import errors
from ev2.data.prepare import in_memory, shards

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
LICENSE_FILE = os.path.join(
    os.path.dirname(os.path.dirname(__file__)), "fashion_mnist", "LICENSE"
)
RULE = "the first {per_class} images of each class, in the order of the IDX file"
# Split -> (prefix of the IDX files, number of shards).
SPLITS = {"train": ("train", 4), "validation": ("t10k", 1)}
IDX_IMAGES_MAGIC, IDX_LABELS_MAGIC = 0x803, 0x801


def prepare_fashion_mnist(
    source: str, out: str, *, train_per_class: int = 1200, eval_per_class: int = 200
) -> dict:
    """Writes a class-balanced part of Fashion-MNIST as ImageNet-layout shards.

    Args:
        source: folder of the four IDX files, plain or gzipped.
        out: folder to create, complete or not at all.
        train_per_class: images of each class from the training file.
        eval_per_class: images of each class from the test file.

    Returns:
        The manifest.

    Raises:
        InputError: `out` contains anything, or a source file is missing, truncated,
            of another format or too small.
    """
    in_memory.check_free(out)  # before minutes of reading
    per_class = {"train": train_per_class, "validation": eval_per_class}
    read = {s: _read_split(source, prefix) for s, (prefix, _) in SPLITS.items()}
    chosen = {
        split: _choose(*read[split], per_class[split], f"{source}/{prefix}")
        for split, (prefix, _) in SPLITS.items()
    }
    with in_memory.new_folder(out) as folder:
        splits = {}
        for split, (images, labels) in chosen.items():
            rows = list(zip(map(_encode, images), labels.tolist(), strict=True))
            written = shards.write_split(
                *(folder, split, rows, SPLITS[split][1]),
                lambda row: shards.example(row[0], [row[1]]),
            )
            splits[split] = {"images": len(rows), "shards": written}
        shutil.copyfile(LICENSE_FILE, os.path.join(folder, "LICENSE"))
        rule = {split: RULE.format(per_class=n) for split, n in per_class.items()}
        return in_memory.write_manifest(
            folder, "fashion-mnist", CLASSES, splits, [source], rule
        )


def _choose(
    images: np.ndarray, labels: np.ndarray, per_class: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first `per_class` images and labels of each class, in file order."""
    rank = np.zeros(len(labels), np.int64)  # number of images of its class before it
    for label in range(len(CLASSES)):
        of_class = labels == label
        if of_class.sum() < per_class:
            raise errors.InputError(
                f"source: {where}* holds {of_class.sum()} images of class {label},"
                f" {per_class} are needed"
            )
        rank[of_class] = np.arange(of_class.sum())
    keep = rank < per_class
    return images[keep], labels[keep]


def _read_split(source: str, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[N, H, W] uint8` images and `[N] uint8` labels of one split."""
    images = _read_idx(source, f"{prefix}-images-idx3-ubyte", IDX_IMAGES_MAGIC)
    labels = _read_idx(source, f"{prefix}-labels-idx1-ubyte", IDX_LABELS_MAGIC)
    if len(images) != len(labels):
        raise errors.InputError(
            f"source: {source}/{prefix}*: {len(images)} images but {len(labels)}"
            " labels; fetch the files again"
        )
    if labels.size and labels.max() >= len(CLASSES):
        raise errors.InputError(
            f"source: {source}/{prefix}*: label {labels.max()} is out of range 0..9"
        )
    return images, labels


def _read_idx(source: str, name: str, magic: int) -> np.ndarray:
    """Reads an IDX file: magic, sizes as big-endian uint32, then uint8."""
    path = os.path.join(source, name)
    plain = os.path.exists(path)
    try:
        with open(path, "rb") if plain else gzip.open(f"{path}.gz", "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise errors.InputError(
            f"source: neither {path} nor {path}.gz exists; give the folder of the four"
            " IDX files (Debian: package dataset-fashion-mnist)"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise errors.InputError(f"source: cannot read {path}: {error}") from error
    rank = magic & 0xFF
    header = 4 * (1 + rank)
    if len(data) < header or struct.unpack(">I", data[:4])[0] != magic:
        raise errors.InputError(f"source: {path} is not an IDX file of rank {rank}")
    shape = struct.unpack(f">{rank}I", data[4:header])
    if len(data) - header != np.prod(shape, dtype=np.int64):
        raise errors.InputError(
            f"source: {path} declares the shape {shape} but holds {len(data) - header}"
            " bytes; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _encode(pixels: np.ndarray) -> bytes:
    """Encodes a grey image `[H, W] uint8` as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return stream.getvalue()

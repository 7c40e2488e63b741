"""The embedded pictures: a part of Fashion-MNIST as PNGs in shards.

    ev2 prepare fashion-mnist --source=/usr/share/datasets/fashion-mnist --out=DIR

writes the folder `ev2/data/fashion_mnist` of this package again, byte for byte
(with zlib 1.2.x; other deflate implementations give other bytes, same pixels).
"""

import gzip
import json
import os
import shutil
import struct
import zlib

import numpy as np

from ev2 import errors
from ev2.data.prepare import shards

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
LICENSE_FILE = os.path.join(
    os.path.dirname(os.path.dirname(__file__)), "fashion_mnist", "LICENSE"
)
RULE = "the first {per_class} pictures of each class, in the order of the IDX file"
# Split -> (prefix of the IDX files, number of shards).
SPLITS = {"train": ("train", 4), "validation": ("t10k", 1)}
ENCODED_AT_ONCE = 4096  # pictures
IDX_IMAGES_MAGIC, IDX_LABELS_MAGIC = 0x803, 0x801


def prepare_fashion_mnist(
    source: str, out: str, *, train_per_class: int = 1200, eval_per_class: int = 200
) -> dict:
    """Writes a class-balanced part of Fashion-MNIST as ImageNet-layout shards.

    Args:
        source: folder with the four IDX files, plain or gzipped.
        out: folder to create; it appears complete or not at all.
        train_per_class: pictures of each class taken from the training file.
        eval_per_class: pictures of each class taken from the test file.

    Returns:
        The manifest, which is also written to `out/manifest.json`: rule, class
        names, and for each split the count and each shard's records and SHA-256.

    Raises:
        InputError: if `out` holds anything, or a source file is missing, cut, of
            another format or too small.
    """
    shards.check_free(out)  # before minutes of reading
    per_class = {"train": train_per_class, "validation": eval_per_class}
    read = {s: read_split(source, prefix) for s, (prefix, _) in SPLITS.items()}
    chosen = {
        split: choose(*read[split], per_class[split], f"{source}/{SPLITS[split][0]}")
        for split in SPLITS
    }
    with shards.new_folder(out) as folder:
        return _write_folder(folder, chosen, per_class)


def _write_folder(folder: str, chosen: dict, per_class: dict) -> dict:
    manifest = {
        "dataset": "fashion-mnist",
        "rule": {s: RULE.format(per_class=n) for s, n in per_class.items()},
        "classes": list(FASHION_MNIST_CLASSES),
        "splits": {},
    }
    for split, (images, labels) in chosen.items():
        manifest["splits"][split] = {
            "images": len(images),
            "shards": write_shards(folder, split, images, labels),
        }
    shards.write_text(folder, "labels.txt", "\n".join(FASHION_MNIST_CLASSES) + "\n")
    shards.write_text(folder, "manifest.json", json.dumps(manifest, indent=1) + "\n")
    shutil.copyfile(LICENSE_FILE, os.path.join(folder, "LICENSE"))
    return manifest


def write_shards(
    folder: str, split: str, images: np.ndarray, labels: np.ndarray
) -> list[dict]:
    """Writes the pictures, in order, to the shards of a split.

    Returns:
        Name, number of records and SHA-256 of each shard.
    """
    rows = [
        (picture, [int(label)])
        for picture, label in zip(encode_grey_png(images), labels, strict=True)
    ]
    count = SPLITS[split][1]
    return shards.write_split(
        folder, split, rows, count, lambda row: shards.example(*row)
    )


def choose(
    images: np.ndarray, labels: np.ndarray, per_class: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """The first `per_class` pictures and labels of each class, in file order.

    Raises:
        InputError: if a class has fewer; `where` names the files.
    """
    if per_class < 1:
        raise errors.InputError(
            f"per_class: {per_class} is not allowed; give 1 or more"
        )
    rank = np.zeros(len(labels), np.int64)  # how many of its class came before it
    for label in range(len(FASHION_MNIST_CLASSES)):
        of_class = labels == label
        if of_class.sum() < per_class:
            raise errors.InputError(
                f"source: {where}* holds {of_class.sum()} pictures of class {label},"
                f" {per_class} are needed"
            )
        rank[of_class] = np.arange(of_class.sum())
    keep = rank < per_class
    return images[keep], labels[keep]


def read_split(source: str, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """`[N, H, W] uint8` pictures and `[N] uint8` labels of one split.

    Args:
        source: folder of the IDX files.
        prefix: "train" or "t10k".

    Raises:
        InputError: a file is missing, cut, of another format, or disagrees.
    """
    images = _read_idx(source, f"{prefix}-images-idx3-ubyte", IDX_IMAGES_MAGIC)
    labels = _read_idx(source, f"{prefix}-labels-idx1-ubyte", IDX_LABELS_MAGIC)
    if len(images) != len(labels):
        raise errors.InputError(
            f"source: {source}/{prefix}*: {len(images)} pictures but {len(labels)}"
            " labels; fetch the files again"
        )
    if labels.size and labels.max() >= len(FASHION_MNIST_CLASSES):
        raise errors.InputError(
            f"source: {source}/{prefix}*: label {labels.max()} is out of range 0..9"
        )
    return images, labels


def _read_idx(source: str, name: str, magic: int) -> np.ndarray:
    """The array of an IDX file: magic, sizes as big-endian uint32, then uint8."""
    path = os.path.join(source, name)
    try:
        if os.path.exists(path):
            with open(path, "rb") as file:
                data = file.read()
        else:
            with gzip.open(path + ".gz", "rb") as file:
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


def encode_grey_png(images: np.ndarray) -> list[bytes]:
    """Encodes all pictures, some at a time for the sake of memory; see below."""
    firsts = range(0, len(images), ENCODED_AT_ONCE)
    parts = [_encode_grey_png(images[i : i + ENCODED_AT_ONCE]) for i in firsts]
    return [encoded for part in parts for encoded in part]


def _encode_grey_png(images: np.ndarray) -> list[bytes]:
    """Encodes `[N, H, W] uint8` grey pictures as PNG, each as small as it gets.

    Each picture is filtered in four ways (None, Up and Paeth over the whole picture,
    and for each row the filter of the least absolute sum), deflated with two
    strategies, and the shortest is kept: 4 % less than the best fixed choice.

    Source: PNG specification, sections 9 (filters) and 12.8 (choosing them).
    """
    n, height, width = images.shape
    filtered = _png_filters(images)  # [5, N, H, 1 + W]
    cost = np.abs(filtered[..., 1:].astype(np.int8).astype(np.int32)).sum(-1)
    best = cost.argmin(0)  # [N, H]
    mixed = filtered[best, np.arange(n)[:, None], np.arange(height)[None, :]]
    none, up, paeth = filtered[0], filtered[2], filtered[4]
    candidates = (
        (none, zlib.Z_DEFAULT_STRATEGY),
        (none, zlib.Z_FILTERED),
        (up, zlib.Z_FILTERED),
        (paeth, zlib.Z_FILTERED),
        (mixed, zlib.Z_DEFAULT_STRATEGY),
        (mixed, zlib.Z_FILTERED),
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8-bit grey
    head = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header)
    tail = _png_chunk(b"IEND", b"")
    encoded = []
    for i in range(n):
        packed = [_deflate(rows[i].tobytes(), how) for rows, how in candidates]
        encoded.append(head + _png_chunk(b"IDAT", min(packed, key=len)) + tail)
    return encoded


def _png_filters(images: np.ndarray) -> np.ndarray:
    """None, Sub, Up, Average, Paeth: `[5, N, H, 1 + W] uint8`, type byte first."""
    x = images.astype(np.int32)
    left, up, corner = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    left[:, :, 1:] = x[:, :, :-1]
    up[:, 1:] = x[:, :-1]
    corner[:, 1:, 1:] = x[:, :-1, :-1]
    estimate = left + up - corner
    to_left, to_up, to_corner = (np.abs(estimate - a) for a in (left, up, corner))
    paeth = np.where(
        (to_left <= to_up) & (to_left <= to_corner),
        left,
        np.where(to_up <= to_corner, up, corner),
    )
    predicted = (np.zeros_like(x), left, up, (left + up) // 2, paeth)
    rows = [
        np.concatenate([np.full((*x.shape[:2], 1), kind), x - p], -1)
        for kind, p in enumerate(predicted)
    ]
    return np.stack(rows).astype(np.uint8)


def _deflate(raw: bytes, strategy: int) -> bytes:
    # Window 2**10 and memory level 5 hold a whole picture; larger ones only cost time.
    stream = zlib.compressobj(9, zlib.DEFLATED, 10, 5, strategy)
    return stream.compress(raw) + stream.flush()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum

"""Run: pytest tests/data/prepare/test_fashion_mnist.py

Small IDX files made here; the embedded shards again, where the IDX files are there.
"""

import gzip
import io
import json
import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ev2 import errors
from ev2.data import sources
from ev2.data.prepare import fashion_mnist

IDX_FOLDER = "/usr/share/datasets/fashion-mnist"  # Debian: dataset-fashion-mnist
needs_idx_files = pytest.mark.skipif(
    not os.path.isdir(IDX_FOLDER),
    reason=f"{IDX_FOLDER} is missing: install the Debian package"
    " dataset-fashion-mnist to rebuild the embedded shards",
)


def _write_idx(folder, prefix: str, images: np.ndarray, labels: np.ndarray, opener):
    suffix = ".gz" if opener is gzip.open else ""
    with opener(folder / f"{prefix}-images-idx3-ubyte{suffix}", "wb") as file:
        file.write(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
    with opener(folder / f"{prefix}-labels-idx1-ubyte{suffix}", "wb") as file:
        file.write(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())


@pytest.fixture
def idx(tmp_path):
    """Five training and three test pictures of each class, shuffled, 6 x 9 px."""
    folder = tmp_path / "idx"
    folder.mkdir()
    rng = np.random.RandomState(0)
    content = {}
    for prefix, per_class, opener in (("train", 5, gzip.open), ("t10k", 3, open)):
        labels = rng.permutation(np.repeat(np.arange(10), per_class)).astype(np.uint8)
        images = rng.randint(0, 256, (len(labels), 6, 9)).astype(np.uint8)
        _write_idx(folder, prefix, images, labels, opener)
        content[prefix] = images, labels
    return folder, content


def _first_of_each_class(images, labels, count):
    """The rule in other words: walk the file, keep a class until it is full."""
    seen, kept = dict.fromkeys(range(10), 0), []
    for i, label in enumerate(labels.tolist()):
        if seen[label] < count:
            seen[label] += 1
            kept.append(i)
    return images[kept], labels[kept]


def test_small_files_come_back(idx, tmp_path):
    folder, content = idx
    out = tmp_path / "out"
    manifest = fashion_mnist.prepare_fashion_mnist(
        str(folder), str(out), train_per_class=4, eval_per_class=2
    )
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert (out / "labels.txt").read_text().splitlines() == manifest["classes"]
    assert "Zalando" in (out / "LICENSE").read_text()
    for split, prefix, count in (("train", "train", 4), ("validation", "t10k", 2)):
        images, labels = _first_of_each_class(*content[prefix], count)
        records = []
        for shard in manifest["splits"][split]["shards"]:
            path = str(out / shard["file"])
            found = [r.numpy() for r in tf.data.TFRecordDataset(path)]
            assert len(found) == shard["records"]
            records += found
        assert len(records) == manifest["splits"][split]["images"] == 10 * count
        for i, record in enumerate(records):
            feature = tf.train.Example.FromString(record).features.feature
            encoded = feature["image/encoded"].bytes_list.value[0]
            np.testing.assert_array_equal(Image.open(io.BytesIO(encoded)), images[i])
            assert feature["image/class/label"].int64_list.value[0] == labels[i] + 1


def test_every_filter_of_png_decodes():
    rng = np.random.RandomState(1)
    y, x = np.mgrid[0:20, 0:30]
    pictures = np.stack(
        [
            rng.randint(0, 256, (20, 30)),
            8 * x,
            12 * y,
            4 * x + 6 * y,
            np.where(x > y, 200, 3),
        ]
    ).astype(np.uint8)
    for encoded, picture in zip(
        fashion_mnist.encode_grey_png(pictures), pictures, strict=True
    ):
        np.testing.assert_array_equal(Image.open(io.BytesIO(encoded)), picture)


def _embedded(name: str) -> bytes:
    with open(os.path.join(sources.EMBEDDED_FOLDER, name), "rb") as file:
        return file.read()


@needs_idx_files
def test_a_shard_of_the_embedded_set_byte_for_byte(tmp_path):
    images, labels = fashion_mnist.read_split(IDX_FOLDER, "t10k")
    chosen = fashion_mnist.choose(images, labels, 200, "t10k")
    fashion_mnist.write_shards(str(tmp_path), "validation", *chosen)
    name = "validation-00000-of-00001"
    assert (tmp_path / name).read_bytes() == _embedded(name)


@needs_idx_files
@pytest.mark.slow
def test_the_embedded_set_byte_for_byte(tmp_path):
    out = tmp_path / "out"
    fashion_mnist.prepare_fashion_mnist(IDX_FOLDER, str(out))
    names = sorted(os.listdir(out))
    assert names == sorted(
        name for name in os.listdir(sources.EMBEDDED_FOLDER) if name[0] != "."
    )
    for name in names:
        assert (out / name).read_bytes() == _embedded(name), name


def test_embedded_set_is_small_and_has_its_licence():
    names = os.listdir(sources.EMBEDDED_FOLDER)
    assert sum(len(_embedded(name)) for name in names) < 8_000_000
    assert b"Permission is hereby granted" in _embedded("LICENSE")


def test_nothing_is_overwritten(idx, tmp_path):
    folder, _ = idx
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(errors.InputError, match="nothing is overwritten"):
        fashion_mnist.prepare_fashion_mnist(str(folder), str(out))
    assert os.listdir(out) == ["mine"]
    with pytest.raises(errors.InputError, match="not an empty folder"):
        fashion_mnist.prepare_fashion_mnist(str(folder), str(out / "mine"))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), "neither"),
        (lambda f: _cut(f / "t10k-images-idx3-ubyte"), "declares the shape"),
        (lambda f: _cut(f / "train-images-idx3-ubyte.gz"), "cannot read"),
        (lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(b"no"), "not an IDX"),
        (
            lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 0x801, 2) + b"\0\1"
            ),
            "30 pictures but 2 labels",
        ),
        (
            lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 0x801, 30) + b"\x0b" * 30
            ),
            "label 11 is out of range",
        ),
        (lambda f: None, "5 pictures of class 0, 1200 are needed"),
    ],
)
def test_bad_input_leaves_nothing(idx, tmp_path, spoil, message):
    folder, _ = idx
    spoil(folder)
    with pytest.raises(errors.InputError, match=message) as raised:
        fashion_mnist.prepare_fashion_mnist(str(folder), str(tmp_path / "out"))
    assert "\n" not in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["idx"]


def test_a_failure_half_way_leaves_nothing(idx, tmp_path, monkeypatch):
    folder, _ = idx

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(fashion_mnist, "write_shards", fail)
    with pytest.raises(OSError, match="disk full"):
        fashion_mnist.prepare_fashion_mnist(
            str(folder), str(tmp_path / "out"), train_per_class=1, eval_per_class=1
        )
    assert sorted(os.listdir(tmp_path)) == ["idx"]

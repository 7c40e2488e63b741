"""Fashion-MNIST's shards from small IDX files, and the embedded ones again."""

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
from ev2.data.prepare import fashion_mnist, shards
from tests.helpers import image_files

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
    """Five training and three test images of each class, shuffled, 6 x 9 px."""
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
    """Reference implementation: walks the file and keeps a class until it is full."""
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


def _embedded(name: str) -> bytes:
    with open(os.path.join(sources.EMBEDDED_FOLDER, name), "rb") as file:
        return file.read()


@needs_idx_files
@pytest.mark.slow
def test_the_embedded_set_is_written_again(tmp_path):
    out = tmp_path / "out"
    fashion_mnist.prepare_fashion_mnist(IDX_FOLDER, str(out))
    for split in ("train", "validation"):
        config = image_files.make_config(source="tfrecord", path=str(out))
        config.data.train_split = split
        written = sources.open_source(config, "train")
        embedded = sources.open_embedded(split)
        assert written.class_names == embedded.class_names
        rows = np.arange(len(embedded))
        (images, labels), (expected, classes) = written.read(rows), embedded.read(rows)
        assert len(written) == len(embedded) and (labels == classes).all()
        for image, other in zip(images, expected, strict=True):
            np.testing.assert_array_equal(
                *(Image.open(io.BytesIO(encoded)) for encoded in (image, other))
            )


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


def _write_labels(folder, labels):
    header = struct.pack(">II", 0x801, len(labels))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(header + labels)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), "neither"),
        (lambda f: _cut(f / "t10k-images-idx3-ubyte"), "declares the shape"),
        (lambda f: _cut(f / "train-images-idx3-ubyte.gz"), "cannot read"),
        (lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(b"no"), "not an IDX"),
        (lambda f: _write_labels(f, b"\0\1"), "30 images but 2 labels"),
        (lambda f: _write_labels(f, b"\x0b" * 30), "label 11 is out of range"),
        (lambda f: None, "5 images of class 0, 1200 are needed"),
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

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(shards, "write_split", fail)
    with pytest.raises(OSError, match="disk full"):
        fashion_mnist.prepare_fashion_mnist(
            str(folder), str(tmp_path / "out"), train_per_class=1, eval_per_class=1
        )
    assert sorted(os.listdir(tmp_path)) == ["idx"]

"""Embedded, TFRecord and synthetic sources; bad input of each kind, in one line."""

import collections
import io
import os

import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from PIL import Image

from ev2 import errors, files
from ev2.data import pipeline, sources, tfrecord
from tests.helpers import image_files


def _write_shards(path, split, counts, first=0, num_classes=3):
    """Images of value first, first + 1..., labels counted from 1."""
    paths = []
    for shard, count in enumerate(counts):
        paths.append(f"{path}/{split}-{shard:05d}-of-{len(counts):05d}")
        with tf.io.TFRecordWriter(paths[-1]) as writer:
            for value in range(first, first + count):
                label = 1 + value % num_classes
                writer.write(image_files.record(image_files.png(value), label))
        first += count
    return paths


def _config(path, **changes):
    values = {"source": "tfrecord", "path": str(path), "num_classes": 3}
    return image_files.make_config(**(values | changes))


def _embedded(**changes):
    return image_files.make_config(source="embedded", name="", **changes)


@pytest.fixture
def shards(tmp_path):
    """Eleven training and four validation records in three classes."""
    _write_shards(tmp_path, "train", (4, 1, 6))
    _write_shards(tmp_path, "validation", (4,), first=100)
    return tmp_path


# Embedded


def test_embedded_counts_and_balance():
    config = _embedded()
    info = sources.describe(config)
    assert (info.num_train_images, info.num_eval_images) == (12_000, 2_000)
    assert info.num_classes == len(info.class_names) == 10
    assert info.class_names[0] == "T-shirt/top"
    for split, per_class in (("train", 1_200), ("eval", 200)):
        opened = sources.open_source(config, split)
        encoded, labels = opened.read(np.arange(len(opened)))
        counts = collections.Counter(labels.tolist())
        assert counts == dict.fromkeys(range(10), per_class)
        assert all(e.startswith(b"\x89PNG") for e in encoded)


def test_embedded_has_a_quarter_held_out():
    def read(split):
        found = sources.open_source(_embedded(train_split=split), "train")
        return found.read(np.arange(len(found)))[0]

    first, last = read("train[:75%]"), read("train[75%:]")
    assert (len(first), len(last)) == (9_000, 3_000)
    assert first + last == read("train")
    with pytest.raises(errors.InputError, match=r"'minival' is not known; .*\[75%:\]"):
        read("minival")


def test_embedded_is_one_set():
    with pytest.raises(errors.InputError, match="fashion_mnist"):
        sources.describe(image_files.make_config(source="embedded", name="mnist"))


# TFRecord shards


@pytest.fixture
def several(tmp_path):
    """Images of one, two and (with one twice) three labels, counted from 1."""
    for split in ("train", "validation"):
        with tf.io.TFRecordWriter(f"{tmp_path}/{split}-00000-of-00001") as writer:
            for i, labels in enumerate(([3], [5, 2], [4, 1, 2, 4])):
                writer.write(image_files.record(image_files.png(i), *labels))
    return tmp_path


def test_records_of_several_labels(several):
    config = _config(several, num_classes=5, max_labels=4)
    _, labels = sources.open_source(config, "train").read(np.array([2, 0, 1]))
    assert labels.tolist() == [[0, 1, 3, -1], [2, -1, -1, -1], [1, 4, -1, -1]]
    batch = next(pipeline.make_eval_data(config, image_size=8, batch_size=4))
    expected = [[2, -1, -1, -1], [1, 4, -1, -1], [0, 1, 3, -1], [0, 0, 0, 0]]
    assert batch["label"].tolist() == expected
    assert batch["mask"].tolist() == [1, 1, 1, 0]


def test_sources_of_one_label_fill_up_the_row():
    config = _embedded(max_labels=3)
    batch = next(pipeline.make_eval_data(config, image_size=8, batch_size=4))
    assert batch["label"].shape == (4, 3)
    assert (batch["label"][:, 0] >= 0).all() and (batch["label"][:, 1:] == -1).all()


@pytest.mark.parametrize("max_labels", [1, 2])
def test_more_labels_than_allowed_are_refused(several, max_labels):
    config = _config(several, num_classes=5, max_labels=max_labels)
    with pytest.raises(errors.InputError, match=f"data.max_labels: {max_labels}, but"):
        sources.open_source(config, "train").read(np.arange(3))


def test_records_in_any_order(shards):
    opened = sources.open_source(_config(shards), "train")
    assert len(opened) == 11
    indices = np.array([10, 0, 4, 3, 5, 10, 1])
    encoded, labels = opened.read(indices)
    assert [image_files.red(e) for e in encoded] == indices.tolist()
    assert labels.tolist() == (indices % 3).tolist()
    assert opened.name(4) == f"{shards}/train-00001-of-00003 record 0"
    assert opened.name(10) == f"{shards}/train-00002-of-00003 record 5"


def test_class_names_from_labels_txt(shards):
    (shards / "labels.txt").write_text("ant\nbee\ncat\n")
    info = sources.describe(_config(shards, num_classes=0))
    assert info == sources.DatasetInfo(11, 4, 3, ("ant", "bee", "cat"))


def test_declared_counts_need_no_data():
    counts = {"num_train_images": 7, "num_eval_images": 2}
    for name in ("tfds", "tfrecord", "synthetic"):
        config = _config("/does/not/exist", source=name, **counts)
        assert sources.describe(config) == sources.DatasetInfo(7, 2, 3, ("0", "1", "2"))


@pytest.mark.parametrize(
    ("key", "split"),
    [("num_train_images", "train"), ("num_eval_images", "eval")],
)
def test_declared_counts_that_disagree(shards, key, split):
    with pytest.raises(errors.InputError, match=f"data.{key}: 12 declared, but"):
        sources.open_source(_config(shards, **{key: 12}), split)


def test_declared_classes_that_disagree(tmp_path):
    image_files.write_pngs(tmp_path, ["a/0.png", "a/1.png", "b/0.png", "b/1.png"])
    with pytest.raises(errors.InputError, match="data.num_classes: 3 declared"):
        sources.describe(_config(tmp_path, source="folder"))


def test_index_is_reused_and_a_stale_one_rebuilt(shards, monkeypatch):
    paths = tfrecord.find_shards(str(shards), "train")
    assert len(tfrecord.open_records(paths)) == 11
    (index_file,) = (name for name in os.listdir(shards) if name.endswith(".npz"))
    indexed = []  # numbers of shards
    monkeypatch.setattr(logging, "info", lambda text, count: indexed.append(count))
    assert len(tfrecord.open_records(paths)) == 11
    assert not indexed
    _write_shards(shards, "train", (4, 2, 6))  # the second shard grows
    assert len(tfrecord.open_records(paths)) == 12
    assert indexed == [3]
    (shards / index_file).write_bytes(b"damaged")
    assert len(tfrecord.open_records(paths)) == 12
    assert indexed == [3, 3]


def test_index_goes_to_the_cache_if_the_folder_is_read_only(
    shards, tmp_path_factory, monkeypatch
):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    write = files.write_atomically

    def refuse(path, content):
        if os.path.dirname(path) == str(shards):
            raise PermissionError("read-only")
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", refuse)
    paths = tfrecord.find_shards(str(shards), "train")
    tfrecord.open_records(paths)
    assert not [name for name in os.listdir(shards) if name.endswith(".npz")]
    assert len(os.listdir(cache / "ev2")) == 1
    monkeypatch.setattr(logging, "info", None)  # it is not indexed again
    assert len(tfrecord.open_records(paths)) == 11


@pytest.mark.parametrize("missing_bytes", [1, 5, 30, 60])
def test_cut_shard_is_refused(shards, missing_bytes):
    path = shards / "train-00000-of-00003"
    path.write_bytes(path.read_bytes()[:-missing_bytes])
    with pytest.raises(errors.InputError, match="truncated in record 3") as raised:
        tfrecord.open_records(tfrecord.find_shards(str(shards), "train"))
    assert str(path) in image_files.one_line(raised)


def test_file_that_is_not_a_shard_is_refused(shards):
    (shards / "train-00001-of-00003").write_text("Shopping list: eggs, milk, flour")
    with pytest.raises(errors.InputError, match="not a TFRecord file"):
        tfrecord.open_records(tfrecord.find_shards(str(shards), "train"))


def test_a_shard_that_changed_under_its_index_is_refused(tmp_path):
    """Detects at the read a shard of the same size with records of other lengths."""
    _write_shards(tmp_path, "train", (2,))
    (path,) = tfrecord.find_shards(str(tmp_path), "train")
    size = os.path.getsize(path)
    tfrecord.open_records([path])
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(b"x" * 5)
        writer.write(b"x" * (size - 5 - 32))
    assert os.path.getsize(path) == size
    opened = tfrecord.open_records([path])
    with pytest.raises(errors.InputError) as raised:
        opened.read(np.array([0]))
    assert f"{path} has changed since its index" in image_files.one_line(raised)


def test_missing_shards(shards):
    with pytest.raises(errors.InputError, match="no files test-00000-of"):
        tfrecord.find_shards(str(shards), "test")
    (shards / "train-00001-of-00003").unlink()
    with pytest.raises(errors.InputError, match="first train-00001-of-00003"):
        tfrecord.find_shards(str(shards), "train")
    with pytest.raises(errors.InputError, match="cannot list '/does/not/exist'"):
        tfrecord.find_shards("/does/not/exist", "train")


@pytest.mark.parametrize("label", [0, 4, -1])
def test_label_out_of_range_names_the_record(tmp_path, label):
    path = tmp_path / "train-00000-of-00001"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(image_files.record(image_files.png(0), 1))
        writer.write(image_files.record(image_files.png(0), label))
    opened = sources.open_source(_config(tmp_path), "train")
    opened.read(np.array([0]))
    message = f"record 1 has label {label}; allowed is 1..3"
    with pytest.raises(errors.InputError, match=message) as raised:
        opened.read(np.array([0, 1]))
    assert str(path) in image_files.one_line(raised)


def test_damaged_records_and_other_layouts(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "train-00000-of-00001")) as writer:
        writer.write(b"\xff\xff not an Example")
        writer.write(image_files.record(b"", 2))
        writer.write(tf.train.Example().SerializeToString())
    opened = sources.open_source(_config(tmp_path), "train")
    encoded, labels = opened.read(np.array([0, 1]))
    assert encoded == [b"", b""] and labels.tolist() == [0, 1]
    with pytest.raises(errors.InputError, match="no feature 'image/encoded'"):
        opened.read(np.array([2]))


def test_shards_without_names_need_a_number(shards):
    with pytest.raises(errors.InputError, match="data.num_classes: 0"):
        sources.describe(_config(shards, num_classes=0))


# Synthetic


def test_synthetic_images_follow_from_the_index():
    config = image_files.make_config(
        source="synthetic", num_train_images=30, num_eval_images=9, num_classes=3
    )
    opened = sources.open_source(config, "train")
    encoded, labels = opened.read(np.array([5, 8, 5]))
    assert labels.tolist() == [2, 2, 2]
    assert encoded[0] == encoded[2] != encoded[1]
    pixels = np.asarray(Image.open(io.BytesIO(encoded[0])), int)
    assert pixels.shape == (32, 32, 3) and pixels.std() > 10
    assert sources.open_source(config, "eval").read(np.array([5]))[0] != encoded[:1]


def test_synthetic_counts_must_be_given():
    with pytest.raises(errors.InputError, match="data.num_train_images: 0"):
        sources.describe(image_files.make_config(source="synthetic", num_classes=3))

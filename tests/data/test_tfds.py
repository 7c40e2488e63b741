"""Datasets as TFDS leaves them on disk, written here in both of its formats."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf

from ev2 import errors
from ev2.data import sources
from tests.helpers import image_files

has_array_record = importlib.util.find_spec("array_record") is not None


def _prepare_tfds(data_dir, file_format: str) -> str:
    """A dataset as TFDS leaves it on disk: 5 + 4 training, 3 validation images."""
    import tensorflow_datasets as tfds

    name = "toy_" + file_format.replace("_", "")
    where = data_dir / name / "1.0.0"
    where.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
        }
    )
    value, infos = 0, []
    for split, lengths in (("train", [5, 4]), ("validation", [3])):
        template = tfds.core.ShardedFileTemplate(
            data_dir=where,
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            dataset_name=name,
            split=split,
            filetype_suffix=file_format,
        )
        for shard, length in enumerate(lengths):
            path = template.sharded_filepath(shard_index=shard, num_shards=len(lengths))
            records = [
                features.serialize_example(
                    {"image": np.full((4, 4, 3), v, np.uint8), "label": v % 3}
                )
                for v in range(value, value + length)
            ]
            value += length
            _write_records(str(path), file_format, records)
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths,
                num_bytes=1,
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=where,
        features=features,
        split_infos=infos,
        supervised_keys=("image", "label"),
        check_data=False,
    )
    return name


def _write_records(path: str, file_format: str, records: list[bytes]):
    if file_format == "tfrecord":
        with tf.io.TFRecordWriter(path) as writer:
            for record in records:
                writer.write(record)
        return
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.mark.parametrize(
    "file_format",
    [
        "tfrecord",
        pytest.param(
            "array_record",
            marks=pytest.mark.skipif(
                not has_array_record, reason="the array_record package is missing"
            ),
        ),
    ],
)
def test_tfds_in_any_order_and_slices(tmp_path, file_format):
    name = _prepare_tfds(tmp_path, file_format)
    config = image_files.make_config(source="tfds", name=name, path=str(tmp_path))
    classes = ("ant", "bee", "cat")
    assert sources.describe(config) == sources.DatasetInfo(9, 3, 3, classes)
    declared = {"num_train_images": 90, "num_eval_images": 30, "num_classes": 3}
    declared |= {"source": "tfds", "name": name}
    for path, names in ((tmp_path, classes), ("/no", ("0", "1", "2"))):
        info = sources.describe(image_files.make_config(path=str(path), **declared))
        assert info == sources.DatasetInfo(90, 30, 3, names)
    for split, values in (
        ("train", range(9)),
        ("train[3:7]", range(3, 7)),
        ("train[:50%]", range(4)),
        ("validation", range(9, 12)),
    ):
        config.data.train_split = split
        opened = sources.open_source(config, "train")
        assert len(opened) == len(values)
        order = np.random.RandomState(0).permutation(len(values))
        encoded, labels = opened.read(order)
        expected = np.array(values)[order]
        assert [image_files.red(e) for e in encoded] == expected.tolist()
        assert labels.tolist() == (expected % 3).tolist()
    assert opened.name(2).endswith("-00000-of-00001 record 2")


def test_tfds_bad_input(tmp_path):
    name = _prepare_tfds(tmp_path, "tfrecord")
    path = str(tmp_path)
    for values, message in (
        ({"name": "mnistt"}, "did you mean mnist"),
        ({"name": "mnist"}, "is not prepared in .*download_and_prepare"),
        ({"name": ""}, "data.name: ''"),
        ({"name": "not a name"}, "Parsing"),
        ({"name": name, "train_split": "tra"}, "no split 'tra'; it has train"),
    ):
        with pytest.raises(errors.InputError, match=message) as raised:
            sources.describe(
                image_files.make_config(source="tfds", path=path, **values)
            )
        image_files.one_line(raised)

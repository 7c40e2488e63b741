"""A batch is a function of (config, step): not of workers, processes or restarts."""

import math
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from PIL import Image

from ev2 import errors, progressive
from ev2.data import pipeline, sources
from tests.helpers import image_files


def _synthetic(num_images=50, **values):
    basis = {"source": "synthetic", "workers": 2}
    counts = {"num_train_images": num_images, "num_eval_images": 13, "num_classes": 3}
    return image_files.make_config(**(basis | counts | values))


def _stage(randaugment=0.0, **values):
    defaults = {"index": 0, "first_step": 0, "last_step": 10, "first_image": 0}
    defaults |= {"image_size": 12, "batch_size": 8}
    defaults["strengths"] = {"randaugment": randaugment}
    return progressive.Stage(**(defaults | values))


def _train(config, stage, first_step=None, **options):
    first_step = stage.first_step if first_step is None else first_step
    batches = pipeline.make_train_data(config, stage, first_step=first_step, **options)
    return list(batches)


def _assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def _join(parts):
    """The global batches of all processes' batches."""
    return [
        {name: np.concatenate([batch[name] for batch in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def _column(batches, name):
    return np.concatenate([batch[name] for batch in batches])


@pytest.fixture
def warnings(monkeypatch):
    """Messages of absl's warnings, in order."""
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: messages.append(text % a))
    return messages


def test_types_and_shapes():
    (batch,) = _train(_synthetic(), _stage(last_step=1))
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("uint8", (8, 12, 12, 3)),
        "label": ("int32", (8,)),
        "mask": ("float32", (8,)),
        "index": ("int64", (8,)),
    }
    assert batch["mask"].tolist() == [1.0] * 8
    assert batch["label"].tolist() == (batch["index"] % 3).tolist()


def test_every_image_once_per_epoch_across_stages():
    config = _synthetic()
    first = _stage(last_step=5)  # 40 images
    second = _stage(
        first_step=5, last_step=15, first_image=40, image_size=16, batch_size=16
    )
    indices = _column(_train(config, first), "index")
    indices = np.concatenate([indices, _column(_train(config, second), "index")])
    assert len(indices) == 200
    epochs = indices.reshape(4, 50)
    assert np.sort(epochs, axis=1).tolist() == [list(range(50))] * 4
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_order_is_frozen():
    # RandomState([seed, epoch]).permutation(5), written down: a change of these
    # numbers breaks the resuming of every run.
    positions = np.arange(10)
    order = pipeline.train_order(7, positions, 5)
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))
    assert order.tolist() == [4, 1, 2, 3, 0, 3, 2, 0, 1, 4]
    some = np.array([9, 0, 4])
    assert pipeline.train_order(7, some, 5).tolist() == order[some].tolist()


@pytest.mark.parametrize(
    "values",
    [
        {},
        pytest.param({"augment": "autoaugment"}, marks=pytest.mark.slow),
        {"augment": "none", "cutout": 0.5},
    ],
)
def test_restart_at_any_step_continues_the_run(values):
    config = _synthetic(num_images=20, **values)
    stage = _stage(first_step=3, first_image=24, last_step=9, randaugment=5.0)
    run = _train(config, stage)
    batches = pipeline.make_train_data(config, stage, first_step=7)
    assert len(batches) == 2
    _assert_equal(run[4:], list(batches))
    assert len(batches) == 0
    assert len(pipeline.make_train_data(config, stage, first_step=9)) == 0


def test_a_late_start_reads_nothing_of_the_steps_before(monkeypatch):
    config, stage = _synthetic(), _stage(last_step=1_000_002)
    opened = sources.open_source(config, "train")
    seen, read = [], opened.read
    monkeypatch.setattr(opened, "read", lambda i: (seen.append(i), read(i))[1])
    batches = _train(config, stage, first_step=1_000_000)
    assert len(batches) == len(seen) == 2
    positions = 8 * 1_000_000 + np.arange(16)
    expected = pipeline.train_order(config.seed, positions, 50)
    assert _column(batches, "index").tolist() == expected.tolist()
    assert sorted(np.concatenate(seen)) == sorted(expected)


def test_workers_change_nothing():
    stage = _stage(randaugment=5.0, last_step=4)
    one = _train(_synthetic(workers=1), stage)
    _assert_equal(one, _train(_synthetic(workers=4), stage))
    _assert_equal(one, _train(_synthetic(workers=0), stage))


@pytest.mark.parametrize(("process_count", "randaugment"), [(2, 5.0), (4, 0.0)])
def test_processes_together_read_the_global_batch(process_count, randaugment):
    config, stage = _synthetic(), _stage(randaugment=randaugment, last_step=3)
    parts = [
        _train(config, stage, process_index=k, process_count=process_count)
        for k in range(process_count)
    ]
    _assert_equal(_train(config, stage), _join(parts))


def _write_source(root, kind: str, count: int) -> str:
    """Writes a split "train" of images whose red is 0, 1, 2..."""
    names = [f"{'ab'[i % 2]}/{i:02d}.png" for i in range(count)]
    if kind == "tfrecord":
        for split in ("train", "validation"):
            for shard in range(3):
                path = f"{root}/{split}-{shard:05d}-of-00003"
                with tf.io.TFRecordWriter(path) as writer:
                    for value in range(shard * count // 3, (shard + 1) * count // 3):
                        writer.write(
                            image_files.record(image_files.png(value), 1 + value % 2)
                        )
        return str(root)
    for split in ("train", "val"):
        image_files.write_pngs(root / split, names)
        if kind == "csv":
            rows = [f"{split}/{name},{name[0]}" for name in names]
            (root / f"{split}.csv").write_text("\n".join(["path,label", *rows]))
        if kind == "tar":
            with tarfile.open(root / f"{split}.tar", "w") as archive:
                archive.add(root / split, arcname=".")
    return str(root)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("eval_crop", ["center", "resize"])
def test_images_of_extreme_shape(tmp_path, kind, eval_crop):
    """One pixel, one row and a ribbon are images like any other."""
    for split in ("train", "val"):
        for i, size in enumerate([(1, 1), (20_000, 10), (10, 20_000), (7, 1)]):
            path = tmp_path / split / "ab"[i % 2] / f"{i}.{kind.lower()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (10 * i, 200, 90)).save(path, kind)
    changes = {"interpolation": "bicubic", "eval_crop": eval_crop}
    config = image_files.make_config(source="folder", path=str(tmp_path), **changes)
    batches = _train(config, _stage(last_step=4, batch_size=4, randaugment=15.0))
    batches += list(pipeline.make_eval_data(config, image_size=12, batch_size=4))
    assert _column(batches, "mask").tolist() == [1.0] * 20
    evaluated = batches[-1]["image"][:, 6, 6]
    expected = [[10 * i, 200, 90] for i in (0, 2, 1, 3)]
    assert np.abs(evaluated - np.array(expected, int)).max() <= 2


@pytest.mark.parametrize(
    "kind, process_count, workers",
    [("folder", 1, 3), ("csv", 2, 1), ("tar", 3, 2), ("tfrecord", 4, 5)],
)
def test_an_epoch_of_any_source_has_every_image_once(
    tmp_path, kind, process_count, workers
):
    path = _write_source(tmp_path, kind, 36)
    config = image_files.make_config(
        source=kind, path=path, num_classes=2, workers=workers, exif=False
    )
    stage = _stage(last_step=3, batch_size=12, image_size=8)
    seen = []
    for process_index in range(process_count):
        options = {"process_index": process_index, "process_count": process_count}
        for batch in _train(config, stage, **options):
            reds = batch["image"][:, 4, 4, 0]
            opened = sources.open_source(config, "train")
            encoded, _ = opened.read(batch["index"])
            assert reds.tolist() == [image_files.red(image) for image in encoded]
            seen += reds.tolist()
    assert sorted(seen) == list(range(36))


def test_seed_position_and_magnitude_matter():
    config, stage = _synthetic(num_images=8), _stage(last_step=2)
    first, second = _train(config, stage)
    other = _synthetic(num_images=8)
    other.seed = 1
    assert _train(other, stage)[0]["index"].tolist() != first["index"].tolist()
    stronger = _train(config, _stage(last_step=1, randaugment=5.0))[0]
    assert stronger["index"].tolist() == first["index"].tolist()
    assert (stronger["image"] != first["image"]).any((1, 2, 3)).sum() >= 6
    # The same eight images in both steps, each with another crop.
    order, again = np.argsort(first["index"]), np.argsort(second["index"])
    crops = first["image"][order] != second["image"][again]
    assert crops.any((1, 2, 3)).all()


def test_no_augmentation_left_is_the_image():
    config = _synthetic(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=False)
    batches = _train(config, _stage(image_size=32, last_step=2))
    plain = pipeline.make_eval_data(config, image_size=32, batch_size=50, split="train")
    images = next(plain)["image"]
    np.testing.assert_array_equal(
        _column(batches, "image"), images[_column(batches, "index")]
    )


def test_half_of_the_images_are_mirrored():
    values = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}
    stage = _stage(image_size=32, last_step=25)
    flipped = _column(_train(_synthetic(**values), stage), "image")
    plain = _column(_train(_synthetic(**values, flip=False), stage), "image")
    same = (flipped == plain).all((1, 2, 3))
    mirrored = (flipped == plain[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 70 <= mirrored.sum() <= 130  # of 200; four standard deviations


@pytest.mark.parametrize("batch_size", [1, 5, 13, 14, 64])
def test_evaluation_sees_every_image_once(batch_size):
    batches = pipeline.make_eval_data(_synthetic(), image_size=8, batch_size=batch_size)
    assert len(batches) == math.ceil(13 / batch_size)
    batches = list(batches)
    assert all(batch["image"].shape == (batch_size, 8, 8, 3) for batch in batches)
    index, mask = _column(batches, "index"), _column(batches, "mask")
    padding = batch_size * len(batches) - 13
    assert index.tolist() == [*range(13), *[-1] * padding]
    assert mask.tolist() == [1.0] * 13 + [0.0] * padding
    assert (_column(batches, "image")[13:] == 128).all()
    assert (_column(batches, "label")[13:] == 0).all()


def test_evaluation_by_processes():
    config = _synthetic()
    options = {"image_size": 8, "batch_size": 10}
    parts = [
        list(
            pipeline.make_eval_data(config, **options, process_index=k, process_count=2)
        )
        for k in range(2)
    ]
    _assert_equal(list(pipeline.make_eval_data(config, **options)), _join(parts))


def test_embedded_evaluation_counts_two_thousand():
    config = image_files.make_config(source="embedded", name="")
    batches = pipeline.make_eval_data(config, image_size=28, batch_size=999)
    batches = list(batches)
    assert sum(batch["mask"].sum() for batch in batches) == 2_000
    assert sorted(_column(batches, "index"))[997:] == list(range(2_000))
    assert np.bincount(_column(batches, "label"))[1:].tolist() == [200] * 9


# Corrupt and unusual files


@pytest.fixture
def album(tmp_path):
    """Class "bad": four corrupt files of nine; class "good": six kinds of files."""
    y, x = np.mgrid[0:40, 0:60]
    pixels = np.stack([4 * x, 6 * y, 3 * x + y], -1).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg, png = image_files.encode(image, "JPEG"), image_files.encode(image, "PNG")
    files = {
        "bad/0.jpg": jpeg,
        "bad/1-zero.jpg": b"",
        "bad/2.png": png,
        "bad/3-text.jpg": b"this is not an image",
        "bad/4.jpg": jpeg,
        "bad/5-cut.jpg": jpeg[: len(jpeg) // 2],
        "bad/6-cut.png": png[: len(png) // 2],
        "bad/7.jpg": jpeg,
        "bad/8.jpg": jpeg,
        "good/cmyk.jpg": image_files.encode(image.convert("CMYK"), "JPEG"),
        "good/grey.jpg": image_files.encode(image.convert("L"), "JPEG"),
        "good/palette.png": image_files.encode(image.convert("P"), "PNG"),
        "good/sideways.jpg": image_files.encode(
            image.rotate(90, expand=True), "JPEG", exif=exif
        ),
        "good/alpha.png": image_files.encode(image.convert("RGBA"), "PNG"),
        "good/plain.bmp": image_files.encode(image, "BMP"),
    }
    for split in ("train", "val"):
        for name, content in files.items():
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return tmp_path


CORRUPT = ("1-zero.jpg", "3-text.jpg", "5-cut.jpg", "6-cut.png")


def test_corrupt_files_are_masked_and_neighbours_stay(album, warnings):
    config = image_files.make_config(source="folder", path=str(album), exif=True)
    batches = pipeline.make_eval_data(config, image_size=20, batch_size=4)
    rows = list(batches)
    mask, label = _column(rows, "mask"), _column(rows, "label")
    assert mask.tolist() == [1, 0, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert label.tolist() == [0] * 9 + [1] * 6 + [0]
    assert _column(rows, "index").tolist() == [*range(15), -1]
    images = _column(rows, "image").astype(int)
    assert (images[mask == 0] == 128).all()
    for row in (0, 2, 4, 7, 8, 9, 10, 11, 12, 13, 14):
        expected = images[2]
        if row == 11:  # good/grey.jpg, third of good's sorted names
            expected = expected @ [[0.299], [0.587], [0.114]]
        palette = 12 if row == 12 else 0  # good/palette.png has few colours
        assert np.abs(images[row] - expected).mean() < 6 + palette, row
    assert batches.skipped == 4
    assert batches.skipped_paths == tuple(f"{album}/val/bad/{n}" for n in CORRUPT)
    assert warnings == [f"Skipped a corrupt image: {p}" for p in batches.skipped_paths]


def test_a_batch_of_corrupt_files_alone(album):
    config = image_files.make_config(source="folder", path=str(album))
    rows = list(pipeline.make_eval_data(config, image_size=8, batch_size=1))
    assert [int(row["mask"][0]) for row in rows] == [1, 0, 1, 0, 1, 0, 0] + [1] * 8
    assert [int(row["index"][0]) for row in rows] == list(range(15))


def test_training_skips_corrupt_files_the_same_way_each_epoch(album, warnings):
    config = image_files.make_config(source="folder", path=str(album), workers=3)
    stage = _stage(batch_size=5, last_step=6, randaugment=5.0)  # two epochs of 15
    batches = pipeline.make_train_data(config, stage, first_step=0)
    rows = list(batches)
    index, mask = _column(rows, "index"), _column(rows, "mask")
    assert sorted(index[mask == 0].tolist()) == [1, 1, 3, 3, 5, 5, 6, 6]
    assert sorted(batches.skipped_paths) == [f"{album}/train/bad/{n}" for n in CORRUPT]
    assert len(warnings) == batches.skipped == 4
    config.data.workers = 1
    _assert_equal(rows, _train(config, stage))


# Bad input


def test_label_out_of_range_reaches_the_training_thread(tmp_path):
    with tf.io.TFRecordWriter(f"{tmp_path}/train-00000-of-00001") as writer:
        for label in (1, 2, 9, 1):
            writer.write(image_files.record(image_files.png(0), label))
    config = image_files.make_config(
        source="tfrecord", path=str(tmp_path), num_classes=2
    )
    batches = pipeline.make_train_data(config, _stage(batch_size=4), first_step=0)
    with pytest.raises(errors.InputError, match="record 2 has label 9; allowed is 1"):
        next(batches)


def test_bad_split_and_processes():
    config = _synthetic()
    with pytest.raises(errors.InputError, match="split: 'test'"):
        pipeline.make_eval_data(config, image_size=8, batch_size=4, split="test")
    with pytest.raises(errors.InputError, match="batch_size: 8 is not divisible"):
        pipeline.make_train_data(config, _stage(), first_step=0, process_count=3)


def test_close_ends_the_iteration():
    batches = pipeline.make_train_data(_synthetic(), _stage(), first_step=0)
    next(batches)
    assert len(batches) == 9
    batches.close()
    assert list(batches) == []

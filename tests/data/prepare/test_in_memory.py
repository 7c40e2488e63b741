"""Flowers and Cars, from miniature files in their published layout."""

import gzip
import io

import numpy as np
import pytest
import scipy.io

from configs import transfer
from ev2.data import sources
from ev2.data.prepare import cars, flowers, in_memory
from tests.helpers import archives, command_line

FLOWERS = {"train": 3, "validation": 3, "test": 6}
CARS = {"train": 5, "test": 4}


def _records(out, split):
    """Name, bytes and label (from 0) of each record of a split."""
    found = archives.read_records(out, split)
    return [(name, encoded, labels[0] - 1) for name, encoded, labels, _ in found]


def _write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def _matlab(**variables):
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables)
    return stream.getvalue()


def _flower_files():
    random = np.random.RandomState(0)
    images = {f"image_{i:05}.jpg": archives.jpeg(random) for i in range(1, 13)}
    labels = np.array([[1, 102, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]], np.uint8)
    packed = archives.tar({f"jpg/{name}": p for name, p in images.items()})
    files = {
        "102flowers.tgz": gzip.compress(packed),
        "imagelabels.mat": _matlab(labels=labels),
        "setid.mat": _matlab(
            trnid=[[2, 4, 6]], valid=[[1, 3, 5]], tstid=[[12, 11, 10, 9, 8, 7]]
        ),
    }
    return files, images, labels[0].tolist()


def test_flowers_come_back(tmp_path):
    files, images, labels = _flower_files()
    out = tmp_path / "out"
    folder = _write(tmp_path / "files", files)
    manifest = flowers.prepare_flowers(folder, str(out), counts=FLOWERS)
    assert {s: x["images"] for s, x in manifest["splits"].items()} == FLOWERS
    numbers = {"train": {2, 4, 6}, "validation": {1, 3, 5}, "test": set(range(7, 13))}
    for split, expected in numbers.items():
        records = _records(out, split)
        assert {int(name[6:11]) for name, _, _ in records} == expected
        for name, encoded, label in records:
            assert encoded == images[name]
            assert label + 1 == labels[int(name[6:11]) - 1]
    assert len((out / "labels.txt").read_text().splitlines()) == 102


def _car_files():
    random = np.random.RandomState(0)
    fields = [("bbox_x1", object), ("class", object), ("fname", object)]
    files, images, labels = {}, {}, {}
    tables = {}
    for split, count in CARS.items():
        names = [f"{i:05}.jpg" for i in range(1, count + 1)]
        images[split] = {name: archives.jpeg(random) for name in names}
        labels[split] = {name: int(random.randint(0, 3)) for name in names}
        rows = [(39, labels[split][name] + 1, name) for name in names]
        tables[split] = _matlab(annotations=np.array([rows], fields))
        packed = {f"cars_{split}/{n}": p for n, p in images[split].items()}
        files[f"cars_{split}.tgz"] = gzip.compress(archives.tar(packed))
    classes = np.array([["Audi TT", "BMW M3", "Ford GT"]], object)
    kit = {
        "devkit/cars_meta.mat": _matlab(class_names=classes),
        "devkit/cars_train_annos.mat": tables["train"],
        "devkit/cars_test_annos.mat": b"without labels",
    }
    files["car_devkit.tgz"] = gzip.compress(archives.tar(kit))
    files["cars_test_annos_withlabels.mat"] = tables["test"]
    return files, images, labels


def test_cars_come_back(tmp_path):
    files, images, labels = _car_files()
    out = tmp_path / "out"
    manifest = cars.prepare_cars(
        _write(tmp_path / "files", files), str(out), counts=CARS
    )
    assert manifest["classes"] == ["Audi TT", "BMW M3", "Ford GT"]
    for split in CARS:
        records = _records(out, split)
        assert {name: p for name, p, _ in records} == images[split]
        assert {name: label for name, _, label in records} == labels[split]


@pytest.mark.parametrize(
    ("dataset", "make", "count"),
    [("flowers", _flower_files, "1,020"), ("cars", _car_files, "8,144")],
)
def test_missing_cut_or_too_few_files_are_named(tmp_path, capsys, dataset, make, count):
    files, _, _ = make()
    out = tmp_path / "out"

    def error(folder, content):
        folder = _write(tmp_path / folder, content)
        flags = [f"--archive={folder}", f"--out={out}"]
        return command_line.refuse(capsys, "prepare", dataset, *flags)

    for name in files:
        rest = {k: v for k, v in files.items() if k != name}
        assert f"lacks {name}; fetch" in error(f"without {name}", rest)
        assert error(
            f"cut {name}", files | {name: files[name][: len(files[name]) // 2]}
        )
    # All files, but not the counts of Table 9.
    assert f"for train, and there should be {count}" in error("all", files)
    assert not out.exists()


@pytest.mark.parametrize("name", ["flowers", "cars"])
def test_the_recipes_read_what_is_written(tmp_path, name):
    """With data.source and data.path alone, but for the counts of the miniature."""
    files = {"flowers": _flower_files, "cars": _car_files}
    folder = _write(tmp_path / "files", files[name]()[0])
    prepare, counts = {
        "flowers": (flowers.prepare_flowers, FLOWERS),
        "cars": (cars.prepare_cars, CARS),
    }[name]
    prepare(folder, str(tmp_path / "out"), counts=counts)
    config = transfer.get_config(f"{name},s")
    config.data.source, config.data.path = "tfrecord", str(tmp_path / "out")
    declared = config.data.num_train_images, config.data.num_eval_images
    config.data.update({"num_train_images": 0, "num_eval_images": 0})
    if name == "cars":
        config.data.num_classes = 3
    trained = sum(counts[split] for split in config.data.train_split.split("+"))
    assert len(sources.open_source(config, "train")) == trained
    assert len(sources.open_source(config, "eval")) == counts["test"]
    real = in_memory.TABLE_9[name]
    assert declared == (sum(real.values()) - real["test"], real["test"])

"""Prepares Stanford's cars from the four files of the set.

    ev2 prepare cars --archive=DIR --out=DIR

The first DIR contains cars_train.tgz, cars_test.tgz, car_devkit.tgz and
cars_test_annos_withlabels.mat.
"""

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ev2 import errors
from ev2.data.prepare import in_memory

DEVKIT, TEST_LABELS = "car_devkit.tgz", "cars_test_annos_withlabels.mat"
CLASS_NAMES, TRAIN_LABELS = "cars_meta.mat", "cars_train_annos.mat"
ARCHIVES = {"train": "cars_train.tgz", "test": "cars_test.tgz"}
HINT = "fetch a copy of that name: its first host, ai.stanford.edu, is gone"


def prepare_cars(
    archive: str, out: str, *, counts: Mapping[str, int] = in_memory.TABLE_9["cars"]
) -> dict:
    """Writes train and test as shards in ImageNet's layout, without the boxes.

    Reads one archive at a time into memory, about 1 GB.

    Args:
        archive: folder of the four files.
        out: folder to create, complete or not at all.
        counts: images of each split.

    Returns:
        The manifest.

    Raises:
        InputError: `out` contains anything, or a file is missing or damaged.
    """
    in_memory.check_free(out)
    names = (*ARCHIVES.values(), DEVKIT, TEST_LABELS)
    paths = in_memory.find_files(archive, dict.fromkeys(names, HINT))
    classes, labels = _read_tables(paths)
    for split, count in counts.items():
        in_memory.check_count(split, len(labels[split]), count)

    def read(split: str) -> list[in_memory.NamedImage]:
        path, label_of = paths[ARCHIVES[split]], labels[split]
        images = [
            in_memory.NamedImage(name, content, label_of[name])
            for name, content in in_memory.read_members("archive", path, label_of)
        ]
        distinct = len({image.name for image in images})
        in_memory.check_count(os.path.basename(path), distinct, counts[split])
        return images

    return in_memory.write_set(out, "cars", classes, labels, read, [*paths.values()])


def _read_tables(
    paths: Mapping[str, str],
) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Returns the class names, and for each split the class of each image by name."""
    names = (CLASS_NAMES, TRAIN_LABELS)
    kit = dict(in_memory.read_members("archive", paths[DEVKIT], names))
    try:
        tables = {
            name: in_memory.load_matlab("archive", name, io.BytesIO(kit[name]))
            for name in names
        }
        test = in_memory.load_matlab("archive", paths[TEST_LABELS])
        classes = [str(name) for name in tables[CLASS_NAMES]["class_names"]]
        labels = {"train": _labels(tables[TRAIN_LABELS]), "test": _labels(test)}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise errors.InputError(
            f"archive: {DEVKIT} or {TEST_LABELS} is not the file of the set"
            f" ({error!r}); {HINT}"
        ) from None
    used = {label for of_split in labels.values() for label in of_split.values()}
    if used - set(range(len(classes))):
        raise errors.InputError(
            f"archive: {DEVKIT} names {len(classes)} classes, images have others; "
            "fetch the files of one edition"
        )
    return classes, labels


def _labels(table: Mapping[str, Any]) -> dict[str, int]:
    rows = np.atleast_1d(table["annotations"])
    return {str(row["fname"]): int(row["class"]) - 1 for row in rows}

"""Stanford's cars, whose first host is gone, from the four files that it had.

    ev2 prepare cars --archive=DIR --out=DIR

The first DIR holds cars_train.tgz, cars_test.tgz, car_devkit.tgz and
cars_test_annos_withlabels.mat.
"""

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ev2 import errors
from ev2.data.prepare import in_memory, shards

DEVKIT, TEST_LABELS = "car_devkit.tgz", "cars_test_annos_withlabels.mat"
CLASS_NAMES, TRAIN_LABELS = "cars_meta.mat", "cars_train_annos.mat"
ARCHIVES = {"train": "cars_train.tgz", "test": "cars_test.tgz"}
HINT = "fetch a copy of that name: its first host, ai.stanford.edu, is gone"


def prepare_cars(
    archive: str, out: str, *, counts: Mapping[str, int] = in_memory.TABLE_9["cars"]
) -> dict:
    """Writes train and test as shards in ImageNet's layout; the boxes are not used.

    Holds one archive at a time in memory, about 1 GB.

    Args:
        archive: folder of the four files.
        out: folder to create; it appears complete or not at all.
        counts: pictures of each split.

    Returns:
        The manifest.

    Raises:
        InputError: `out` holds anything, or a file is missing or not as it should be.
    """
    shards.check_free(out)
    names = (*ARCHIVES.values(), DEVKIT, TEST_LABELS)
    paths = in_memory.find_files("archive", archive, dict.fromkeys(names, HINT))
    classes, labels = _read_tables(paths)
    for split, count in counts.items():
        in_memory.check_count("archive", split, len(labels[split]), count)
    with shards.new_folder(out) as folder:
        written = {}
        for split, of_picture in labels.items():
            path = paths[ARCHIVES[split]]
            pictures = [
                in_memory.Picture(name, content, of_picture[name])
                for name, content in in_memory.read_members("archive", path, of_picture)
            ]
            found = len({picture.name for picture in pictures})
            in_memory.check_count(
                "archive", os.path.basename(path), found, counts[split]
            )
            written[split] = in_memory.write_split(folder, split, pictures)
        sources = list(paths.values())
        return in_memory.write_manifest(folder, "cars", classes, written, sources)


def _read_tables(
    paths: Mapping[str, str],
) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Names of the classes; for each split the class of each picture by its name."""
    wanted = (CLASS_NAMES, TRAIN_LABELS)
    kit = dict(in_memory.read_members("archive", paths[DEVKIT], wanted))
    try:
        tables = {
            name: in_memory.load_matlab("archive", name, io.BytesIO(kit[name]))
            for name in wanted
        }
        tables[TEST_LABELS] = in_memory.load_matlab("archive", paths[TEST_LABELS])
        classes = [str(name) for name in tables[CLASS_NAMES]["class_names"]]
        labels = {
            "train": _labels(tables[TRAIN_LABELS]),
            "test": _labels(tables[TEST_LABELS]),
        }
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise errors.InputError(
            f"archive: {DEVKIT} or {TEST_LABELS} is not that of the set ({error!r}); "
            f"{HINT}"
        ) from None
    used = {label for found in labels.values() for label in found.values()}
    if used - set(range(len(classes))):
        raise errors.InputError(
            f"archive: {DEVKIT} names {len(classes)} classes, pictures have others; "
            "fetch the files of one edition"
        )
    return classes, labels


def _labels(table: Mapping[str, Any]) -> dict[str, int]:
    rows = np.atleast_1d(table["annotations"])
    return {str(row["fname"]): int(row["class"]) - 1 for row in rows}

"""Prepares Oxford's 102 flowers from the three files of their page.

    ev2 prepare flowers --archive=DIR --out=DIR

The first DIR contains 102flowers.tgz, imagelabels.mat and setid.mat, which give the
classes no names but their numbers.
"""

import re
from collections.abc import Mapping

import numpy as np

from ev2 import errors
from ev2.data.prepare import in_memory

NUM_CLASSES = 102
PAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
ARCHIVE, LABELS, SETS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
SPLITS = {"train": "trnid", "validation": "valid", "test": "tstid"}
NAME = re.compile(r"image_(\d{5})\.jpg$")


def prepare_flowers(
    archive: str, out: str, *, counts: Mapping[str, int] = in_memory.TABLE_9["flowers"]
) -> dict:
    """Writes train, validation and test as shards in ImageNet's layout.

    Needs about 350 MB of memory for the images.

    Args:
        archive: folder of the three files.
        out: folder to create, complete or not at all.
        counts: images of each split.

    Returns:
        The manifest.

    Raises:
        InputError: `out` contains anything, or a file is missing or damaged.
    """
    in_memory.check_free(out)
    hints = {name: f"fetch {PAGE}/{name}" for name in (ARCHIVE, LABELS, SETS)}
    paths = in_memory.find_files(archive, hints)
    labels, splits = _read_tables(paths, counts)
    images = {
        int(match[1]): (name, content)
        for name, content in in_memory.read_members("archive", paths[ARCHIVE])
        if (match := NAME.match(name))
    }
    in_memory.check_count("all splits", len(images), len(labels))
    classes = [f"flower {i}" for i in range(1, NUM_CLASSES + 1)]

    def read(split: str) -> list[in_memory.NamedImage]:
        return [
            in_memory.NamedImage(*images[i], int(labels[i - 1]) - 1)
            for i in splits[split]
        ]

    return in_memory.write_set(out, "flowers", classes, splits, read, [*paths.values()])


def _read_tables(
    paths: Mapping[str, str], counts: Mapping[str, int]
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Returns class of each image and image numbers of each split, counted from 1."""
    try:
        labels = in_memory.load_matlab("archive", paths[LABELS])["labels"].reshape(-1)
        sets = in_memory.load_matlab("archive", paths[SETS])
        splits = {
            split: [int(i) for i in np.atleast_1d(sets[key])]
            for split, key in SPLITS.items()
        }
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise errors.InputError(
            f"archive: {LABELS} or {SETS} is not the file of the set ({error!r}); fetch"
            f" it from {PAGE}"
        ) from None
    for split, count in counts.items():
        in_memory.check_count(split, len(splits[split]), count)
    numbers = sorted(i for split in splits.values() for i in split)
    is_whole = numbers == list(range(1, len(labels) + 1))
    if not is_whole or labels.min() < 1 or labels.max() > NUM_CLASSES:
        raise errors.InputError(
            f"archive: {LABELS} and {SETS} do not fit one another; fetch them from "
            f"{PAGE}"
        )
    return labels, splits

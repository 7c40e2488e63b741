"""Oxford's 102 flowers, from the three files of their page.

    ev2 prepare flowers --archive=DIR --out=DIR

The first DIR holds 102flowers.tgz, imagelabels.mat and setid.mat. The classes have no
names there: they are called by their numbers.
"""

import re
from collections.abc import Mapping

import numpy as np

from ev2 import errors
from ev2.data.prepare import in_memory, shards

NUM_CLASSES = 102
PAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
ARCHIVE, LABELS, SETS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
SPLITS = {"train": "trnid", "validation": "valid", "test": "tstid"}
NAME = re.compile(r"image_(\d{5})\.jpg$")


def prepare_flowers(
    archive: str, out: str, *, counts: Mapping[str, int] = in_memory.TABLE_9["flowers"]
) -> dict:
    """Writes train, validation and test as shards in ImageNet's layout.

    Holds all pictures in memory, about 350 MB.

    Args:
        archive: folder of the three files.
        out: folder to create; it appears complete or not at all.
        counts: pictures of each split.

    Returns:
        The manifest.

    Raises:
        InputError: `out` holds anything, or a file is missing or not as it should be.
    """
    shards.check_free(out)
    hints = {name: f"fetch {PAGE}/{name}" for name in (ARCHIVE, LABELS, SETS)}
    paths = in_memory.find_files("archive", archive, hints)
    labels, splits = _read_tables(paths, counts)
    pictures = {
        int(match[1]): (name, content)
        for name, content in in_memory.read_members("archive", paths[ARCHIVE])
        if (match := NAME.match(name))
    }
    in_memory.check_count("archive", "all splits", len(pictures), len(labels))
    with shards.new_folder(out) as folder:
        written = {
            split: in_memory.write_split(
                folder,
                split,
                [
                    in_memory.Picture(*pictures[i], int(labels[i - 1]) - 1)
                    for i in numbers
                ],
            )
            for split, numbers in splits.items()
        }
        classes = [f"flower {i}" for i in range(1, NUM_CLASSES + 1)]
        return in_memory.write_manifest(
            folder, "flowers", classes, written, list(paths.values())
        )


def _read_tables(
    paths: Mapping[str, str], counts: Mapping[str, int]
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Class of each picture, and the numbers of each split's; all counted from 1."""
    try:
        labels = in_memory.load_matlab("archive", paths[LABELS])["labels"].reshape(-1)
        sets = in_memory.load_matlab("archive", paths[SETS])
        splits = {
            split: [int(i) for i in np.atleast_1d(sets[key])]
            for split, key in SPLITS.items()
        }
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise errors.InputError(
            f"archive: {LABELS} or {SETS} is not that of the set ({error!r}); fetch "
            f"them from {PAGE}"
        ) from None
    for split, count in counts.items():
        in_memory.check_count("archive", split, len(splits[split]), count)
    numbers = sorted(i for found in splits.values() for i in found)
    is_whole = numbers == list(range(1, len(labels) + 1))
    if not is_whole or labels.min() < 1 or labels.max() > NUM_CLASSES:
        raise errors.InputError(
            f"archive: {LABELS} and {SETS} do not fit one another; fetch them from "
            f"{PAGE}"
        )
    return labels, splits

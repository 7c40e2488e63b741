"""The embedded images with other labels: several each, and of fewer classes.

    python -m tests.helpers.fashion_groups DIR

writes DIR/several, in which an image has its class and the groups that contain it, as
in ImageNet21k, and DIR/kinds, in which it has one of four classes.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from ev2.data import sources
from ev2.data.prepare import shards

GROUPS = {
    "clothing": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Shirt"),
    "top": ("T-shirt/top", "Pullover", "Coat", "Shirt"),
    "footwear": ("Sandal", "Sneaker", "Ankle boot"),
}
KINDS = {
    "top": GROUPS["top"],
    "other clothing": ("Trouser", "Dress"),
    "footwear": GROUPS["footwear"],
    "bag": ("Bag",),
}
NUM_SHARDS = {"train": 4, "validation": 1}


def write_fashion_groups(out: str | pathlib.Path) -> None:
    """Writes both folders into the new folder `out`, as ImageNet-layout shards."""
    classes = sources.open_embedded("train").class_names
    several = [
        [i, *(len(classes) + g for g in _containing(name, GROUPS))]
        for i, name in enumerate(classes)
    ]
    kinds = [_containing(name, KINDS) for name in classes]
    out = pathlib.Path(out)
    _write(out / "several", (*classes, *GROUPS), several)
    _write(out / "kinds", tuple(KINDS), kinds)


def _containing(name: str, groups: dict[str, Sequence[str]]) -> list[int]:
    """Indices of the groups that contain the class."""
    return [i for i, names in enumerate(groups.values()) if name in names]


def _write(
    folder: pathlib.Path, classes: Sequence[str], labels_of: list[list[int]]
) -> None:
    folder.mkdir(parents=True)
    for split, count in NUM_SHARDS.items():
        images = sources.open_embedded(split)
        encoded, labels = images.read(np.arange(len(images)))
        rows = [(encoded[i], labels_of[label]) for i, label in enumerate(labels)]
        shards.write_split(
            str(folder), split, rows, count, lambda row: shards.example(*row)
        )
    (folder / "labels.txt").write_text("\n".join(classes) + "\n")
    manifest = {"max_labels": max(map(len, labels_of))}
    (folder / "manifest.json").write_text(json.dumps(manifest) + "\n")


if __name__ == "__main__":
    write_fashion_groups(sys.argv[1])

"""The embedded pictures with other labels: several each, and of fewer kinds.

    ev2 prepare fashion-groups --out=DIR

writes DIR/several, in which a picture has its class and the groups that it belongs to,
as in ImageNet21k, and DIR/kinds, in which it has one of four.
"""

import json
import os
from collections.abc import Sequence

import numpy as np

from ev2.data import sources as source
from ev2.data.prepare import fashion_mnist, shards

GROUPS = {
    "clothing": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Shirt"),
    "top": ("T-shirt/top", "Pullover", "Coat", "Shirt"),
    "footwear": ("Sandal", "Sneaker", "Ankle boot"),
}
KINDS = ("top", "other clothing", "footwear", "bag")
NUM_SHARDS = {"train": 4, "validation": 1}


def prepare_fashion_groups(out: str) -> dict:
    """Writes both folders, as shards in ImageNet's layout.

    Args:
        out: folder to create; it appears complete or not at all.

    Returns:
        The manifests by folder, which are also written there.

    Raises:
        InputError: `out` holds anything, or cannot be written.
    """
    classes = fashion_mnist.FASHION_MNIST_CLASSES
    several = [[i, *_groups_of(name)] for i, name in enumerate(classes)]
    kinds = [[_kind_of(name)] for name in classes]
    with shards.new_folder(out) as folder:
        return {
            "several": _write(folder, "several", (*classes, *GROUPS), several),
            "kinds": _write(folder, "kinds", KINDS, kinds),
        }


def _groups_of(name: str) -> list[int]:
    """Labels of the groups of a class, after those of the classes."""
    first = len(fashion_mnist.FASHION_MNIST_CLASSES)
    return [first + i for i, names in enumerate(GROUPS.values()) if name in names]


def _kind_of(name: str) -> int:
    if name in GROUPS["top"]:
        return 0
    if name in GROUPS["clothing"]:
        return 1
    return 2 if name in GROUPS["footwear"] else 3


def _write(
    parent: str, name: str, classes: Sequence[str], labels_of: list[list[int]]
) -> dict:
    folder = os.path.join(parent, name)
    os.mkdir(folder)
    manifest = {
        "dataset": f"fashion-mnist, {name}",
        "rule": "the embedded pictures, in their order",
        "classes": list(classes),
        "max_labels": max(map(len, labels_of)),
        "splits": {},
    }
    for split, count in NUM_SHARDS.items():
        pictures = source.open_embedded(split)
        encoded, labels = pictures.read(np.arange(len(pictures)))
        rows = [(encoded[i], labels_of[label]) for i, label in enumerate(labels)]
        written = shards.write_split(
            folder, split, rows, count, lambda row: shards.example(*row)
        )
        manifest["splits"][split] = {"images": len(pictures), "shards": written}
    shards.write_text(folder, "labels.txt", "\n".join(classes) + "\n")
    shards.write_text(folder, "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest

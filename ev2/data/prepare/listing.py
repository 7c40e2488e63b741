"""Describes the data set to prepare: images, classes, and the rule of the splits."""

import dataclasses
import os
from typing import Any

from ev2.data import storage
from ev2.data.prepare.image_table import ImageTable
from ev2.data.tensorflow import tf

ORDER = "by the SHA-256 of the file name, lowest first"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """Images of all splits, and their metadata in the manifest.

    Attributes:
        dataset: name of the data set.
        classes: names of the classes, WordNet ids if `synsets`.
        splits: images of each split, before `held_out` is taken from "train".
        held_out: name of the held-out split, or "".
        held_out_images: size of the held-out split, the first of "train" by hash.
        held_out_flag: flag of the size on the command line.
        merge: makes one record of images with equal bytes.
        sources: name and bytes of each file or folder.
        left_out: name and reason of each file that is not an image.
        rule: rule of each split, in words.
        notes: remarks, such as counts that differ from the published ones.
    """

    dataset: str
    classes: tuple[str, ...]
    synsets: bool
    splits: dict[str, ImageTable]
    held_out: str = ""
    held_out_images: int = 0
    held_out_flag: str = ""
    merge: bool = False
    sources: list[dict[str, Any]]
    left_out: list[dict[str, str]]
    rule: dict[str, str]
    notes: list[str]


def describe_source(path: str) -> dict[str, Any]:
    """Returns the name and bytes of a file, or of all files in a folder."""
    name = os.path.basename(os.path.normpath(path))
    if not tf.io.gfile.isdir(path):
        return {"name": name, "bytes": storage.size(path)}
    folders = tf.io.gfile.walk(path)
    paths = [os.path.join(root, file) for root, _, names in folders for file in names]
    return {"name": name, "bytes": sum(storage.map_parallel(size_or_0, paths))}


def size_or_0(path: str) -> int:
    """Returns the bytes of the file; 0 for a link to nothing."""
    try:
        return storage.size(path)
    except FileNotFoundError:
        return 0

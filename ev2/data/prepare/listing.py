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
    """Images of all splits and everything that the manifest states about them.

    Attributes:
        dataset: Its name.
        classes: Names of the classes, WordNet ids if `synsets`.
        splits: Images of each split, before `held_out` is taken from "train".
        held_out: Name of the held-out split, or "".
        held_out_images: Its size; its images are the first of "train" by hash.
        held_out_flag: Flag of the size on the command line.
        merge: True if images with equal bytes become one.
        sources: Name and bytes of each file or folder.
        left_out: Name and reason of each file that is not an image.
        rule: The rule of each split, in words.
        notes: Lines for people, such as counts that differ from the published ones.
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
    paths = [
        os.path.join(root, file)
        for root, _, names in tf.io.gfile.walk(path)
        for file in names
    ]
    return {"name": name, "bytes": sum(storage.map_parallel(size_or_0, paths))}


def size_or_0(path: str) -> int:
    """Returns the bytes of the file; 0 for a link to nothing."""
    try:
        return storage.size(path)
    except FileNotFoundError:
        return 0

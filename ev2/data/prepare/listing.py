"""What is to be prepared: pictures, classes, and the rule of the splits."""

import dataclasses
import os
from typing import Any

from ev2.data import storage as files
from ev2.data.prepare import image_table
from ev2.data.tensorflow import tf

ORDER = "by the SHA-256 of the file name, lowest first"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """What is to be prepared.

    Attributes:
        dataset: Its name.
        classes: Names of the classes, WordNet ids if `synsets`.
        splits: Pictures of each split, before `held_out` is taken from "train".
        held_out: Name of that split, or "".
        held_out_images: Its size; its pictures are the first of "train" by hash.
        held_out_flag: What the size is called on the command line.
        merge: Whether pictures with equal bytes become one.
        sources: Name and bytes of each file or folder.
        left_out: Name and reason of what is no picture.
        rule: What decides the splits, in words.
        notes: Lines for people, such as other counts than the published ones.
    """

    dataset: str
    classes: tuple[str, ...]
    synsets: bool
    splits: dict[str, image_table.ImageTable]
    held_out: str = ""
    held_out_images: int = 0
    held_out_flag: str = ""
    merge: bool = False
    sources: list[dict[str, Any]]
    left_out: list[dict[str, str]]
    rule: dict[str, str]
    notes: list[str]


def describe_source(path: str) -> dict[str, Any]:
    """Name and bytes; of a folder, those of the files in it."""
    name = os.path.basename(os.path.normpath(path))
    if not tf.io.gfile.isdir(path):
        return {"name": name, "bytes": files.size(path)}
    paths = [
        os.path.join(inside, file)
        for inside, _, found in tf.io.gfile.walk(path)
        for file in found
    ]
    return {"name": name, "bytes": sum(files.map_parallel(size_or_0, paths))}


def size_or_0(path: str) -> int:
    """Bytes of the file; 0 for a link to nothing."""
    try:
        return files.size(path)
    except FileNotFoundError:
        return 0

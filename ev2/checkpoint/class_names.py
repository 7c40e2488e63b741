"""Matches class names: finds each name of one list in another.

ImageNet's classes match by WordNet id or by name; see `ev2.data.imagenet_classes`.
"""

import collections
import functools
from collections.abc import Sequence

import numpy as np

from ev2 import errors
from ev2.data import imagenet_classes


def find(names: Sequence[str], candidates: Sequence[str]) -> list[int | None]:
    """Returns the index in `candidates` of each of `names`, or None.

    Two names match if they are equal; else if both mean the same class of ImageNet1k,
    by its WordNet id or by a name of that class alone; else if they are equal without
    regard to case and to underscores for spaces. A name that matches several candidates
    has no index.
    """
    if tuple(names) == tuple(candidates):  # equal names of two classes stay apart
        return list(range(len(candidates)))
    by_name = _group(candidates)
    by_meaning = _group([_meaning(name) for name in candidates])
    groups = (by_name.get(name) or by_meaning.get(_meaning(name), []) for name in names)
    return [group[0] if len(group) == 1 else None for group in groups]


def match(
    names: Sequence[str], candidates: Sequence[str], checkpoint: str
) -> np.ndarray:
    """Returns the checkpoint's class of each class of the data: `[len(names)]` int32.

    Where either side has only numbers for names, classes are matched by index.

    Args:
      names: class names of the data.
      candidates: class names of the checkpoint.
      checkpoint: path of the checkpoint, for the error.

    Raises:
      InputError: the checkpoint has no classes, or lacks a class of the data.
    """
    if not candidates:
        raise errors.InputError(
            f"checkpoint: {checkpoint!r} gives features and no classes; give one with "
            "classes"
        )
    classes = find(names, candidates)
    missing = [name for name, i in zip(names, classes, strict=True) if i is None]
    numbers = imagenet_classes.default_class_names(len(names))
    if missing and len(names) == len(candidates):
        numbered = len(missing) == len(names) and tuple(candidates) == numbers
        if tuple(names) == numbers or numbered:
            return np.arange(len(names), dtype=np.int32)
    if missing:
        examples = ", ".join(map(imagenet_classes.readable, candidates[:3]))
        raise errors.InputError(
            f"checkpoint: {checkpoint!r} lacks {len(missing):,} of the data's "
            f"{len(names):,} classes, the first being {missing[0]!r}; name them as its "
            f"{len(candidates):,} classes: {examples}, ..."
        )
    return np.array(classes, np.int32)


def _group(names: Sequence[str]) -> dict[str, list[int]]:
    """Returns the indices of each name."""
    indices = collections.defaultdict(list)
    for i, name in enumerate(names):
        indices[name].append(i)
    return indices


def _meaning(name: str) -> str:
    """Returns the WordNet id of the class that `name` means, or the name folded."""
    if imagenet_classes.is_wordnet_id(name):
        return name
    ids, ids_of_folded = _ids_by_name()
    return ids.get(name) or ids_of_folded.get(_fold(name)) or _fold(name)


@functools.cache
def _ids_by_name() -> tuple[dict[str, str], dict[str, str]]:
    """Returns WordNet ids by the names that mean one class: as written, and folded.

    A short name means its class even if it is another name of a second class
    ("missile" of "projectile").
    """
    tables = []
    for spell in (str, _fold):
        ids_of = collections.defaultdict(set)
        for row in imagenet_classes.imagenet1k():
            for name in row.other_names:
                ids_of[spell(name)].add(row.id)
        unique = {name: ids.pop() for name, ids in ids_of.items() if len(ids) == 1}
        short = {spell(row.name): row.id for row in imagenet_classes.imagenet1k()}
        tables.append(unique | short)
    return tables[0], tables[1]


def _fold(name: str) -> str:
    """Returns the name without regard to case, underscores and extra spaces."""
    return " ".join(name.replace("_", " ").casefold().split())

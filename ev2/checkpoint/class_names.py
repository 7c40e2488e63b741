"""Matches class names: finds each name of one list in another.

ImageNet's classes match by WordNet id or by name; see `ev2.data.imagenet_classes`.
"""

import collections
import functools
from collections.abc import Sequence

import numpy as np

from ev2 import errors
from ev2.data import imagenet_classes


def find(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Returns the position in `known` of each of `names`; None where it is not there.

    Names are equal as they are written; else if both mean the same class of ImageNet1k,
    by its WordNet id or by a name that is its alone; else without regard to case and to
    underscores for spaces. A name that is equal to several of `known` is not found.
    """
    if tuple(names) == tuple(known):  # of two classes with one name, each is itself
        return list(range(len(known)))
    written, meant = _positions(known), _positions([_meaning(k) for k in known])
    found = []
    for name in names:
        places = written.get(name) or meant.get(_meaning(name), [])
        found.append(places[0] if len(places) == 1 else None)
    return found


def match(names: Sequence[str], known: Sequence[str], checkpoint: str) -> np.ndarray:
    """Returns the checkpoint's class of each class of the data: `[len(names)]` int32.

    Where either side has only numbers for names, classes are matched by index.

    Args:
      names: class names of the data.
      known: class names of the checkpoint.
      checkpoint: path of the checkpoint, for the error.

    Raises:
      InputError: the checkpoint has no classes, or lacks one of the data's.
    """
    if not known:
        raise errors.InputError(
            f"checkpoint: {checkpoint!r} gives features and no classes; give one with "
            "classes"
        )
    classes = find(names, known)
    missing = [name for name, i in zip(names, classes, strict=True) if i is None]
    numbers = imagenet_classes.default_class_names(len(names))
    if missing and len(names) == len(known):
        numbered = len(missing) == len(names) and tuple(known) == numbers
        if tuple(names) == numbers or numbered:
            return np.arange(len(names), dtype=np.int32)
    if missing:
        examples = ", ".join(imagenet_classes.readable(name) for name in known[:3])
        raise errors.InputError(
            f"checkpoint: {checkpoint!r} does not know {len(missing):,} of the data's "
            f"{len(names):,} classes, the first being {missing[0]!r}; name them as its "
            f"{len(known):,} are: {examples}, ..."
        )
    return np.array(classes, np.int32)


def _positions(names: Sequence[str]) -> dict[str, list[int]]:
    positions = collections.defaultdict(list)
    for i, name in enumerate(names):
        positions[name].append(i)
    return positions


def _meaning(name: str) -> str:
    """The WordNet id that the name stands for, or the name without case."""
    if imagenet_classes.is_wordnet_id(name):
        return name
    written, folded = _ids_by_name()
    return written.get(name) or folded.get(_fold(name)) or _fold(name)


@functools.cache
def _ids_by_name() -> tuple[dict[str, str], dict[str, str]]:
    """Ids by the names that stand for one class: as written, and without case.

    A short name stands for its class even if it is another name of a second one
    ("missile" of "projectile").
    """
    tables = []
    for spell in (str, _fold):
        others = collections.defaultdict(set)
        for row in imagenet_classes.imagenet1k():
            for name in row.other_names:
                others[spell(name)].add(row.id)
        alone = {name: ids.pop() for name, ids in others.items() if len(ids) == 1}
        tables.append(
            alone | {spell(row.name): row.id for row in imagenet_classes.imagenet1k()}
        )
    return tables[0], tables[1]


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())

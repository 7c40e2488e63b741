"""Names of classes: ImageNet's by WordNet id, and finding one list of names in another.

Checkpoints of ImageNet name their classes by WordNet id, as its folders do; whatever
is printed for people goes through `readable`. Classes of other data are shown as they
are. The table beside this file, `imagenet1k.tsv`, holds the 1,000 ids of ILSVRC2012 in
their order, which is the order of a network's outputs, each with its names.

Source: WordNet 3.0 (Princeton University). Where classes share their first name, a word
in brackets or a longer name tells them apart.
"""

import collections
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

_TABLE = pathlib.Path(__file__).with_name("imagenet1k.tsv")


class Row(NamedTuple):
    """One class of ImageNet1k."""

    id: str  # WordNet id, as "n01440764"
    name: str  # short, and no other row's
    other_names: tuple[str, ...]  # some are shared with other rows


@functools.cache
def imagenet1k() -> tuple[Row, ...]:
    """Returns the 1,000 classes in the order of a network's outputs."""
    lines = _TABLE.read_text(encoding="utf-8").splitlines()[1:]  # below the heading
    return tuple(
        Row(wordnet_id, name, tuple(filter(None, "".join(others).split(", "))))
        for wordnet_id, name, *others in (line.split("\t") for line in lines)
    )


@functools.cache
def _names_by_id() -> dict[str, str]:
    return {row.id: row.name for row in imagenet1k()}


def is_wordnet_id(name: str) -> bool:
    """Whether `name` is the WordNet id of a class of ImageNet1k."""
    return name in _names_by_id()


def readable(name: str) -> str:
    """Returns the name of a WordNet id of ImageNet1k, and any other name as it is."""
    return _names_by_id().get(name, name)


def numbers(count: int) -> tuple[str, ...]:
    """Returns ("0", "1", ...), the names of classes that have none."""
    return tuple(str(i) for i in range(count))


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


def _positions(names: Sequence[str]) -> dict[str, list[int]]:
    positions = collections.defaultdict(list)
    for i, name in enumerate(names):
        positions[name].append(i)
    return positions


def _meaning(name: str) -> str:
    """The WordNet id that the name stands for, or the name without case."""
    if is_wordnet_id(name):
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
        for row in imagenet1k():
            for name in row.other_names:
                others[spell(name)].add(row.id)
        alone = {name: ids.pop() for name, ids in others.items() if len(ids) == 1}
        tables.append(alone | {spell(row.name): row.id for row in imagenet1k()})
    return tables[0], tables[1]


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())

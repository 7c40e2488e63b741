"""The 1,000 classes of ImageNet1k: WordNet ids and names.

Checkpoints of ImageNet name their classes by WordNet id, as its folders do; `readable`
gives the names to print. The table `imagenet1k.tsv` holds the ids of ILSVRC2012
in the order of a network's outputs, each with its names.

Source: WordNet 3.0 (Princeton University). Classes that share their first name have a
word in brackets or a longer name.
"""

import functools
import pathlib
from typing import NamedTuple

_TABLE = pathlib.Path(__file__).with_name("imagenet1k.tsv")


class ImagenetClass(NamedTuple):
    """One class of ImageNet1k."""

    id: str  # WordNet id, as "n01440764"
    name: str  # short and unique
    other_names: tuple[str, ...]  # some belong to several classes


@functools.cache
def imagenet1k() -> tuple[ImagenetClass, ...]:
    """Returns the 1,000 classes in the order of a network's outputs."""
    lines = _TABLE.read_text(encoding="utf-8").splitlines()[1:]  # below the heading
    return tuple(
        ImagenetClass(
            wordnet_id, name, tuple(filter(None, "".join(others).split(", ")))
        )
        for wordnet_id, name, *others in (line.split("\t") for line in lines)
    )


@functools.cache
def _names_by_id() -> dict[str, str]:
    return {row.id: row.name for row in imagenet1k()}


def is_wordnet_id(name: str) -> bool:
    """Returns True for the WordNet id of a class of ImageNet1k."""
    return name in _names_by_id()


def readable(name: str) -> str:
    """Returns the name of a WordNet id of ImageNet1k; any other name unchanged."""
    return _names_by_id().get(name, name)


def default_class_names(count: int) -> tuple[str, ...]:
    """Returns ("0", "1", ...), the names of classes without names."""
    return tuple(str(i) for i in range(count))

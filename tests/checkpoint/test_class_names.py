"""Finds class names among others."""

import pytest

from ev2.checkpoint import class_names
from ev2.data import imagenet_classes

IMAGENET = [row.id for row in imagenet_classes.imagenet1k()]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("n07753592", 954),
        ("banana", 954),
        ("Banana", 954),
        ("golden_retriever", 207),
        ("Golden  Retriever", 207),
        ("Tinca tinca", 0),  # another name, of one class alone
        ("crane (bird)", 134),
        ("missile", 657),  # also another name of "projectile", 744
        ("projectile", 744),
        ("Cardigan", 264),  # the dog's as it is written,
        ("cardigan", 474),  # the jacket's
        ("crane", None),  # two classes
        ("unicorn", None),
        ("", None),
        ("954", None),
    ],
)
def test_a_name_is_found_among_wordnet_ids(name, index):
    assert class_names.find([name], IMAGENET) == [index]


def test_wordnet_ids_are_found_among_names():
    assert class_names.find(["n02099601", "n01440764"], ["Tench", "dog"]) == [None, 0]
    # Ids of two classes are never one, though they share a name.
    assert class_names.find(["n04008634"], ["n03773504", "x"]) == [None]


def test_an_equal_name_comes_before_an_equal_meaning():
    candidates = ["cat", "Cat", "dog"]
    assert class_names.find(["Cat", "cat", "DOG", "CAT"], candidates) == [1, 0, 2, None]
    assert class_names.find(["tabby"], ["tabby cat", "tabby"]) == [1]
    assert class_names.find(["n02123045"], ["tabby cat", "tabby"]) == [None]


def test_equal_lists_match_class_by_class():
    assert class_names.find(["crane", "crane"], ["crane", "crane"]) == [0, 1]
    assert class_names.find(["crane"], ["crane", "crane"]) == [None]

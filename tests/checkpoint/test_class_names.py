"""pytest tests/checkpoint/test_class_names.py

The table of ImageNet's classes, against facts known elsewhere; names found in names.
"""

import re

import pytest

from ev2.checkpoint import class_names

# Indices as every published ImageNet network numbers them.
WELL_KNOWN = {
    0: ("n01440764", "tench"),
    1: ("n01443537", "goldfish"),
    207: ("n02099601", "golden retriever"),
    281: ("n02123045", "tabby"),
    388: ("n02510455", "giant panda"),
    417: ("n02782093", "balloon"),
    483: ("n02980441", "castle"),
    701: ("n03888257", "parachute"),
    954: ("n07753592", "banana"),
    999: ("n15075141", "toilet tissue"),
}


def test_the_table_has_1000_classes_in_the_order_of_their_ids():
    rows = class_names.imagenet1k()
    ids = [row.id for row in rows]
    assert len(ids) == len(set(ids)) == 1000 and ids == sorted(ids)
    assert all(re.fullmatch(r"n\d{8}", i) for i in ids)
    for index, (wordnet_id, name) in WELL_KNOWN.items():
        assert rows[index][:2] == (wordnet_id, name)


def test_names_are_short_clean_and_unlike_each_other():
    names = [row.name for row in class_names.imagenet1k()]
    assert len({name.casefold() for name in names}) == 1000
    for row in class_names.imagenet1k():
        for name in (row.name, *row.other_names):
            assert name and name == " ".join(name.split()) and name.isascii()
            assert not re.search(r"[,;\t]", name)
        assert row.name not in row.other_names
    assert max(map(len, names)) == len("American Staffordshire terrier")


def test_classes_that_share_a_name_are_told_apart():
    assert {
        class_names.readable(wordnet_id)
        for wordnet_id in ("n02012849", "n03126707", "n03710637", "n03710721")
    } == {"crane (bird)", "crane (machine)", "maillot (tights)", "maillot (tank suit)"}
    assert class_names.readable("n02113186") == "Cardigan Welsh corgi"
    assert class_names.readable("n02963159") == "cardigan"


def test_other_names_are_shown_as_they_are():
    for name in ("rose", "7", "n99999999", "", "tench"):
        assert class_names.readable(name) == name
        assert not class_names.is_wordnet_id(name)
    assert class_names.is_wordnet_id("n01440764")


IMAGENET = [row.id for row in class_names.imagenet1k()]


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
def test_finding_a_name_among_wordnet_ids(name, index):
    assert class_names.find([name], IMAGENET) == [index]


def test_wordnet_ids_are_found_among_names():
    assert class_names.find(["n02099601", "n01440764"], ["Tench", "dog"]) == [None, 0]
    # Ids of two classes are never one, though they share a name.
    assert class_names.find(["n04008634"], ["n03773504", "x"]) == [None]


def test_what_is_written_alike_comes_before_what_is_meant_alike():
    known = ["cat", "Cat", "dog"]
    assert class_names.find(["Cat", "cat", "DOG", "CAT"], known) == [1, 0, 2, None]
    assert class_names.find(["tabby"], ["tabby cat", "tabby"]) == [1]
    assert class_names.find(["n02123045"], ["tabby cat", "tabby"]) == [None]


def test_equal_lists_are_equal_class_by_class():
    assert class_names.find(["crane", "crane"], ["crane", "crane"]) == [0, 1]
    assert class_names.find(["crane"], ["crane", "crane"]) == [None]


def test_numbers():
    assert class_names.numbers(3) == ("0", "1", "2")

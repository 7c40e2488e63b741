"""The table of ImageNet's classes, against facts known elsewhere."""

import re

from ev2.data import imagenet_classes

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


def test_the_1000_classes_are_in_the_order_of_their_ids():
    rows = imagenet_classes.imagenet1k()
    ids = [row.id for row in rows]
    assert len(ids) == len(set(ids)) == 1000 and ids == sorted(ids)
    assert all(re.fullmatch(r"n\d{8}", i) for i in ids)
    for index, (wordnet_id, name) in WELL_KNOWN.items():
        assert rows[index][:2] == (wordnet_id, name)


def test_names_are_short_clean_and_unique():
    names = [row.name for row in imagenet_classes.imagenet1k()]
    assert len({name.casefold() for name in names}) == 1000
    for row in imagenet_classes.imagenet1k():
        for name in (row.name, *row.other_names):
            assert name and name == " ".join(name.split()) and name.isascii()
            assert not re.search(r"[,;\t]", name)
        assert row.name not in row.other_names
    assert max(map(len, names)) == len("American Staffordshire terrier")


def test_classes_that_share_a_name_have_distinct_readable_names():
    assert {
        imagenet_classes.readable(wordnet_id)
        for wordnet_id in ("n02012849", "n03126707", "n03710637", "n03710721")
    } == {"crane (bird)", "crane (machine)", "maillot (tights)", "maillot (tank suit)"}
    assert imagenet_classes.readable("n02113186") == "Cardigan Welsh corgi"
    assert imagenet_classes.readable("n02963159") == "cardigan"


def test_other_names_stay_unchanged():
    for name in ("rose", "7", "n99999999", "", "tench"):
        assert imagenet_classes.readable(name) == name
        assert not imagenet_classes.is_wordnet_id(name)
    assert imagenet_classes.is_wordnet_id("n01440764")


def test_default_class_names():
    assert imagenet_classes.default_class_names(3) == ("0", "1", "2")

"""The policy, which of its operations run, and their results against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from ev2.data.augment import autoaugment, randaugment
from tests.helpers import image_files
from tests.helpers import released_randaugment as released

SIDE = 24
PAIRS = len(autoaugment.POLICY_V0)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return image_files.ramps(SIDE)


@pytest.fixture(scope="module", params=randaugment.LEVELS)
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def augment(variant):
    return autoaugment.make_autoaugment(variant, image_size=SIDE)


def draws_of(pair: int, first: float = 0.999, second: float = 0.999) -> tf.Tensor:
    """Of one pair; an operation is applied if its number is below its probability."""
    own = ([applied, 0.8, 0.5, 0.5] for applied in (first, second))
    return tf.constant([(pair + 0.5) / PAIRS, *sum(own, [])])


def test_the_policy_has_the_form_of_one():
    levels = randaugment.standard_levels(5.0, SIDE)
    names = set(randaugment.make_operations(levels))
    assert PAIRS == 25
    for pair in autoaugment.POLICY_V0:
        assert len(pair) == autoaugment.OPERATIONS_PER_IMAGE
        for name, chance, magnitude in pair:
            assert name in names and 0 <= chance <= 1 and 0 <= magnitude <= 10


def test_both_operations_of_every_pair_run_one_after_the_other(augment, variant):
    """Against each operation alone, in eager mode."""
    image = tf.constant(image_files.ramps(SIDE))
    in_graph = tf.function(augment, autograph=False)
    for number, pair in enumerate(autoaugment.POLICY_V0):
        draws = draws_of(number, 0.0, 0.0)
        expected = image
        for name, chance, magnitude in pair:
            levels = autoaugment.LEVELS[variant](float(magnitude), SIDE)
            if chance > 0:
                operation = randaugment.make_operations(levels)[name]
                expected = operation(expected, draws[1:5])
        for run in (augment, in_graph):
            np.testing.assert_array_equal(run(image, draws), expected, str(pair))


def test_released_policy_equals_its_rules(image):
    augment = autoaugment.make_autoaugment("released", image_size=SIDE)
    for number, pair in enumerate(autoaugment.POLICY_V0):
        expected = image
        for name, chance, magnitude in pair:
            # 250 px at magnitude 10 rather than 100.
            scaled = 2.5 * magnitude if name.startswith("Translate") else magnitude
            if chance > 0:
                expected = released.apply(name, expected, scaled, 1, (12, 12))
        actual = augment(tf.constant(image), draws_of(number, 0.0, 0.0))
        np.testing.assert_array_equal(actual, expected, str(pair))


def test_an_operation_is_applied_as_often_as_it_says(augment, image):
    """Invert with 0.4, then Rotate by nothing: inverted below 0.4, else untouched."""
    inverts = 9
    assert autoaugment.POLICY_V0[inverts][0] == ("Invert", 0.4, 9)
    for applied, expected in ((0.39, 255 - image), (0.41, image)):
        actual = augment(tf.constant(image), draws_of(inverts, applied))
        assert image_files.difference(actual, expected) == 0
    never = 19  # Equalize with 0.8, then Equalize with 0.0
    untouched = augment(tf.constant(image), draws_of(never, 0.81, 0.0))
    assert image_files.difference(untouched, image) == 0


def test_a_translation_of_225_px_leaves_nothing_of_a_small_image(image):
    translates = 15
    assert autoaugment.POLICY_V0[translates][1] == ("TranslateY", 0.8, 9)
    draws = draws_of(translates, 0.0, 0.0)
    gone, moved = (
        autoaugment.make_autoaugment(variant, image_size=SIDE)(
            tf.constant(image), draws
        ).numpy()
        for variant in ("released", "standard")
    )
    assert (gone == 128).all() and not (moved == 128).all()

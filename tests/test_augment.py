"""Run: pytest tests/test_augment.py

What the config's words choose.
"""

import numpy as np
import pytest
import tensorflow as tf

from ev2 import errors
from ev2.data import augment, autoaugment, randaugment
from tests import pictures

SIDE = 16


def _make(**values) -> augment.Augment:
    data = pictures.make_config(**values).data
    return augment.make_augment(data, magnitude=6.0, image_size=SIDE)


def test_each_choice_is_what_its_module_makes():
    picture = tf.constant(pictures.ramps(SIDE))
    draws = tf.constant(np.random.RandomState(0).rand(20, 9), tf.float32)
    expected = {
        "randaugment": randaugment.make_randaugment(
            "standard", magnitude=6.0, layers=2, image_size=SIDE
        ),
        "autoaugment": autoaugment.make_autoaugment("standard", image_size=SIDE),
        "none": lambda picture, draws: picture,
    }
    assert tuple(expected) == augment.CHOICES
    for choice, number in (("randaugment", 8), ("autoaugment", 9), ("none", 0)):
        made = _make(augment=choice)
        assert made.num_draws == number
        for row in draws:
            actual = made.apply(picture, row[:number])
            np.testing.assert_array_equal(actual, expected[choice](picture, row))


def test_bad_input():
    data = pictures.make_config(augment="trivialaugment").data
    with pytest.raises(errors.InputError, match="randaugment, autoaugment, none"):
        augment.check(data)

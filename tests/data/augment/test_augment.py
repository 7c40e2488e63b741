"""Each value of data.augment against the function of its module; cutout by hand."""

import numpy as np
import tensorflow as tf

from ev2.data.augment import augment, autoaugment, randaugment
from tests.helpers import image_files

SIDE = 16


def _make(**values) -> augment.Augment:
    data = image_files.make_config(**values).data
    return augment.make_augment(data, magnitude=6.0, image_size=SIDE)


def test_each_choice_equals_the_function_of_its_module():
    image = tf.constant(image_files.ramps(SIDE))
    draws = tf.constant(np.random.RandomState(0).rand(20, 9), tf.float32)
    expected = {
        "randaugment": randaugment.make_randaugment(
            "standard", magnitude=6.0, layers=2, image_size=SIDE
        ),
        "autoaugment": autoaugment.make_autoaugment("standard", image_size=SIDE),
        "none": lambda image, draws: image,
    }
    for choice, number in (("randaugment", 8), ("autoaugment", 9), ("none", 0)):
        made = _make(augment=choice)
        assert made.num_draws == number
        for row in draws:
            actual = made.apply(image, row[:number], None)
            np.testing.assert_array_equal(actual, expected[choice](image, row))


def _cut(image: np.ndarray, y: float, x: float, seed=(1, 2), **values) -> np.ndarray:
    made = _make(augment="none", **values)
    assert made.num_draws == 2
    seed = tf.constant(seed, tf.int64)
    return made.apply(tf.constant(image), tf.constant([y, x]), seed).numpy()


def test_cutout_covers_half_the_side_with_noise():
    grey = np.full((SIDE, SIDE, 3), 7, np.uint8)
    changed = (_cut(grey, 0.5, 0.25, cutout=0.5) != 7).any(-1)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[4:12, 0:8] = True  # about row 8, column 4
    assert (changed == expected).all()
    corner = (_cut(grey, 0.0, 0.999, cutout=0.5) != 7).any(-1)
    assert corner[:4, -5:].all() and corner.sum() == 20


def test_cutout_noise_is_uniform_and_follows_its_seed():
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    noise = _cut(black, 0.5, 0.5, cutout=1.0)
    assert (noise == _cut(black, 0.5, 0.5, cutout=1.0)).all()
    assert (noise != _cut(black, 0.5, 0.5, seed=(1, 3), cutout=1.0)).any()
    # 768 bytes: their mean is within 4 standard errors (2.7) of the range's middle.
    assert noise.min() < 5 and noise.max() > 250 and abs(noise.mean() - 127.5) < 11


def test_cutout_follows_the_other_augmentation():
    image, seed = tf.constant(image_files.ramps(SIDE)), tf.constant([1, 2], tf.int64)
    draws = tf.constant([2.5 / 16, 0.5, 0.5, 0.5, 0.5, 0.5])  # Invert, then cutout
    made = _make(randaugment_layers=1, cutout=0.5)
    expected = _cut(255 - image.numpy(), 0.5, 0.5, cutout=0.5)
    assert made.num_draws == 6
    np.testing.assert_array_equal(made.apply(image, draws, seed), expected)

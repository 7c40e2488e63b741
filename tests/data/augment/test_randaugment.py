"""The tables of both variants against hand-computed numbers, "released" image by image
against NumPy written from its rules, "standard" for growing with the magnitude; eager
equals graph.
"""

import collections

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from ev2.data.augment import ops, randaugment
from tests.helpers import image_files
from tests.helpers import released_randaugment as released

SIDE = 24


WITHOUT_MAGNITUDE = ("AutoContrast", "Equalize", "Invert")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return image_files.ramps(SIDE)


def draws_of(*, direction: float, y: float = 0.5, x: float = 0.25) -> tf.Tensor:
    """Draws of one operation: its number, direction, the centre of cutout."""
    return tf.constant([0.0, direction, y, x])


def test_standard_grows_with_the_magnitude():
    levels = [randaugment.standard_levels(m / 2, 300) for m in range(1, 81)]
    for smaller, larger in zip(levels, levels[1:], strict=False):
        assert larger.degrees >= smaller.degrees
        assert larger.slope >= smaller.slope
        assert larger.translate_px >= smaller.translate_px
        assert larger.cutout_half_px >= smaller.cutout_half_px
        assert 1 <= larger.posterize_bits <= smaller.posterize_bits
        assert 0 <= larger.solarize_threshold <= smaller.solarize_threshold
        assert smaller.solarize_addition <= larger.solarize_addition <= 255
        assert larger.factors[0] <= smaller.factors[0] < 1.0 < smaller.factors[1]
        assert larger.factors[1] >= smaller.factors[1]


def test_standard_at_ten_and_in_fractions_of_the_image():
    levels = randaugment.standard_levels(10.0, 300)
    assert levels.degrees == 30.0 and levels.slope == pytest.approx(0.3)
    assert levels.translate_px == pytest.approx(100.0)
    assert levels.cutout_half_px == 40
    assert (levels.posterize_bits, levels.solarize_threshold) == (4, 128)
    assert levels.solarize_addition == 110
    assert levels.factors == (pytest.approx(0.1), pytest.approx(1.9))
    half = randaugment.standard_levels(10.0, 150)
    assert (half.translate_px, half.cutout_half_px) == (pytest.approx(50.0), 20)


@pytest.mark.parametrize(
    ("magnitude", "bits", "threshold", "translate", "cutout", "factor"),
    # Computed by hand from the released formulae; thresholds modulo 256.
    [
        (5.0, 2, 128, 50.0, 20, 1.0),
        (10.0, 4, 0, 100.0, 40, 1.9),
        (35 / 3, 4, 42, 350 / 3, 46, 2.2),
        (15.0, 6, 128, 150.0, 60, 2.8),
        (20.0, 8, 0, 200.0, 80, 3.7),
        (25.0, 8, 128, 250.0, 100, 4.6),
    ],
)
def test_released_numbers(magnitude, bits, threshold, translate, cutout, factor):
    levels = randaugment.released_levels(magnitude, 300)
    assert levels.posterize_bits == bits
    assert levels.solarize_threshold == threshold
    assert levels.translate_px == pytest.approx(translate)
    assert levels.cutout_half_px == cutout
    assert levels.factors == (pytest.approx(factor), pytest.approx(factor))
    assert levels.degrees == pytest.approx(3.0 * magnitude)
    assert levels.slope == pytest.approx(0.03 * magnitude)


@pytest.mark.parametrize(
    ("side", "white"), [(128, 64), (171, 114), (214, 178), (256, 255), (300, 255)]
)
def test_released_contrast_turns_about_the_pixel_count(side, white):
    levels = randaugment.released_levels(10.0, side)
    assert levels.contrast_mean == white
    flat = np.full((4, 4, 3), 40, np.uint8)
    pulled = ops.contrast(flat, 0.0, mean=levels.contrast_mean)
    assert pulled.numpy().max() == pulled.numpy().min() == white


# 35 / 3 is a stage's of the released M; posterize would shift by 8 at 2, by -2 at 25.
@pytest.mark.parametrize("magnitude", [2.0, 5.0, 10.0, 35 / 3, 15.0, 20.0, 25.0])
@pytest.mark.parametrize("side", [SIDE, 61])
def test_released_equals_its_rules(side, magnitude):
    noise = np.random.RandomState(side).randint(0, 256, (side, side, 3))
    named = randaugment.make_operations(randaugment.released_levels(magnitude, side))
    assert len(named) == 16
    for image in (noise.astype(np.uint8), image_files.ramps(side)):
        for name, operation in named.items():
            for sign, direction in ((-1, 0.2), (1, 0.8)):
                actual = operation(tf.constant(image), draws_of(direction=direction))
                center = side // 2, side // 4
                expected = released.apply(name, image, magnitude, sign, center)
                np.testing.assert_array_equal(actual, expected, err_msg=name)


def test_released_wraps_and_weakens(image):
    """Shows the wrap-around on an image rather than in the reference."""

    def change(name, magnitude):
        named = randaugment.make_operations(
            randaugment.released_levels(magnitude, SIDE)
        )
        return named[name](tf.constant(image), draws_of(direction=0.8)).numpy()

    for magnitude in (10.0, 20.0):
        assert (change("Solarize", magnitude) == 255 - image).all()
    assert (change("Solarize", 15.0) == change("Solarize", 5.0)).all()
    kept = [len(np.unique(change("Posterize", m))) for m in (5.0, 10.0, 15.0)]
    assert kept[0] <= 4 < kept[1] <= 16 < kept[2]
    with tf.device("CPU"):  # 0 bits: what its shifts by 8 do
        by_8 = tf.bitwise.left_shift(tf.bitwise.right_shift(image, 8), 8).numpy()
    assert (change("Posterize", 2.0) == by_8).all() and set(by_8.flat) == {0, 128}
    for magnitude in (20.0, 25.0):
        assert (change("Posterize", magnitude) == image).all()


@pytest.mark.parametrize("direction", [pytest.param(0.2, marks=pytest.mark.slow), 0.8])
def test_standard_moves_away_from_the_image(direction):
    image = image_files.ramps(48)
    distances = collections.defaultdict(list)
    for magnitude in range(1, 26):
        levels = randaugment.standard_levels(float(magnitude), 48)
        for name, operation in randaugment.make_operations(levels).items():
            after = operation(tf.constant(image), draws_of(direction=direction, x=0.5))
            change = np.abs(after.numpy().astype(int) - image)
            distances[name].append(change.mean())
    for name, row in distances.items():
        if name in WITHOUT_MAGNITUDE:
            assert len(set(row)) == 1, name
        else:
            assert (np.diff(row) >= 0).all() and row[-1] > row[0], name


def test_standard_is_the_same_at_every_size():
    """An image of twice the side, sampled at every second pixel, is moved alike."""
    fine = np.repeat(np.repeat(image_files.ramps(SIDE), 2, 0), 2, 1)
    for name in ("TranslateX", "TranslateY", "Cutout"):
        small, large = (
            randaugment.make_operations(randaugment.standard_levels(6.25, side))[name](
                tf.constant(image), draws_of(direction=0.8)
            ).numpy()
            for side, image in ((SIDE, fine[::2, ::2]), (2 * SIDE, fine))
        )
        assert image_files.difference(large[::2, ::2], small) == 0, name


@pytest.mark.parametrize("variant", randaugment.LEVELS)
def test_each_operation_alone_in_a_graph_equals_eager(image, variant):
    # 7.0: no operation is the identity there, in either variant.
    eager = randaugment.make_operations(randaugment.LEVELS[variant](7.0, SIDE))
    augment = randaugment.make_randaugment(
        variant, magnitude=7.0, layers=1, image_size=SIDE
    )
    in_graph = tf.function(augment, autograph=False)
    assert len(eager) == 16
    for number, name in enumerate(eager):
        for direction in (0.2, 0.8):
            draws = tf.constant([(number + 0.5) / 16, direction, 0.5, 0.25])
            expected = eager[name](tf.constant(image), draws)
            actual = in_graph(tf.constant(image), draws)
            assert actual.dtype == tf.uint8
            np.testing.assert_array_equal(actual, expected, err_msg=name)
            assert image_files.difference(actual, image) > 0, name


def test_only_the_chosen_operation_runs(image):
    ran = []

    def noting(number):
        def apply(image, draws):
            tf.py_function(lambda: ran.append(number), [], [])
            return image + number

        return apply

    run_one = randaugment.make_chooser([noting(n) for n in range(3)], SIDE)
    for run in (run_one, tf.function(run_one, autograph=False)):
        after = run(tf.constant(2), tf.constant(image), tf.zeros([4]))
        assert image_files.difference(after, image + np.uint8(2)) == 0
    assert ran == [2, 2]


def test_directions_differ(image):
    named = randaugment.make_operations(randaugment.standard_levels(5.0, SIDE))
    for name in ("Rotate", "Color", "Contrast", "Sharpness", "ShearX", "TranslateY"):
        one, other = (
            named[name](tf.constant(image), tf.constant([0.0, u, 0.5, 0.5]))
            for u in (0.1, 0.9)
        )
        assert image_files.difference(one, other) > 0, name


def test_layers_follow_each_other(image):
    augment = randaugment.make_randaugment(
        "standard", magnitude=5.0, layers=2, image_size=SIDE
    )
    invert, posterize = (2 + 0.5) / 16, (4 + 0.5) / 16
    draws = tf.constant([invert, 0.0, 0.0, 0.0, posterize, 0.0, 0.0, 0.0])
    expected = ImageOps.posterize(ImageOps.invert(Image.fromarray(image)), 6)
    assert image_files.difference(augment(tf.constant(image), draws), expected) == 0


def test_no_magnitude_or_layers_is_no_change(image):
    for magnitude, layers in ((0.0, 2), (5.0, 0)):
        augment = randaugment.make_randaugment(
            "standard", magnitude=magnitude, layers=layers, image_size=SIDE
        )
        assert augment(image, None) is image

"""Run: pytest tests/test_randaugment.py

Each operation against PIL, or against NumPy written from its definition.
"""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from ev2 import errors
from ev2.data import randaugment as ra

SIDE = 24
ALL = tuple(ra.operations(ra.standard_levels(5.0, SIDE)))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth colours with noise, so that every operation changes something."""
    rng = np.random.RandomState(0)
    ramp = np.linspace(30, 200, SIDE)
    channels = [ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], ramp[:, None] / 2]
    smooth = np.stack(np.broadcast_arrays(*channels), -1)
    return np.clip(smooth + rng.randint(-20, 20, smooth.shape), 0, 255).astype(np.uint8)


def _difference(actual, expected) -> int:
    return int(np.abs(np.asarray(actual, int) - np.asarray(expected, int)).max())


def test_sixteen_operations():
    assert len(ALL) == 16


@pytest.mark.parametrize(
    ("operation", "pil"),
    [
        (ra.equalize, ImageOps.equalize),
        (ra.invert, ImageOps.invert),
        *[
            (lambda p, b=b: ra.posterize(p, b), lambda i, b=b: ImageOps.posterize(i, b))
            for b in range(1, 9)
        ],
        *[
            (lambda p, t=t: ra.solarize(p, t), lambda i, t=t: ImageOps.solarize(i, t))
            for t in (0, 1, 42, 128, 255, 256)
        ],
    ],
)
def test_exactly_as_pil(picture, operation, pil):
    assert _difference(operation(picture), pil(Image.fromarray(picture))) == 0


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.55, 1.0, 1.9, 3.25])
@pytest.mark.parametrize(
    ("operation", "pil", "tolerance"),
    [
        (ra.brightness, ImageEnhance.Brightness, 1),
        (ra.color, ImageEnhance.Color, 1),  # grey differs by rounding
        (ra.contrast, ImageEnhance.Contrast, 1),
        (ra.sharpness, ImageEnhance.Sharpness, 1),  # smooth truncates, PIL rounds
    ],
)
def test_enhancements_as_pil(picture, operation, pil, tolerance, factor):
    expected = pil(Image.fromarray(picture)).enhance(factor)
    limit = 1 + tolerance * max(1.0, abs(1.0 - factor))
    assert _difference(operation(picture, factor), expected) <= limit


def test_auto_contrast_stretches_each_channel(picture):
    expected = ImageOps.autocontrast(Image.fromarray(picture))
    stretched = ra.auto_contrast(picture)
    assert _difference(stretched, expected) <= 1
    assert stretched.numpy().min((0, 1)).tolist() == [0, 0, 0]
    assert stretched.numpy().max((0, 1)).tolist() == [255, 255, 255]


@pytest.mark.parametrize("operation", [ra.auto_contrast, ra.equalize])
@pytest.mark.parametrize("value", [0, 40, 255])
def test_one_value_stays(operation, value):
    flat = np.full((5, 7, 3), value, np.uint8)
    assert _difference(operation(flat), flat) == 0


def test_equalize_of_one_flat_channel(picture):
    picture = picture.copy()
    picture[..., 1] = 77
    expected = ImageOps.equalize(Image.fromarray(picture))
    assert _difference(ra.equalize(picture), expected) == 0


def test_solarize_add_by_hand():
    picture = np.array([[[0, 20, 127], [128, 200, 255]]], np.uint8)
    assert ra.solarize_add(picture, 110).numpy().tolist() == [
        [[110, 130, 237], [128, 200, 255]]
    ]
    assert ra.solarize_add(picture, 250).numpy().tolist() == [
        [[250, 255, 255], [128, 200, 255]]
    ]


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (-90.0, -1), (180.0, 2)])
def test_rotate_quarter_turns(picture, degrees, turns):
    assert _difference(ra.rotate(picture, degrees), np.rot90(picture, turns)) == 0


def test_rotate_fills_the_corners_with_grey(picture):
    turned = ra.rotate(picture, 45.0).numpy()
    assert turned[0, 0].tolist() == turned[-1, -1].tolist() == [128, 128, 128]


def test_translate_by_hand(picture):
    expected = np.full_like(picture, 128)
    expected[:, :-3] = picture[:, 3:]
    assert _difference(ra.translate_x(picture, 3.0), expected) == 0
    expected = np.full_like(picture, 128)
    expected[5:] = picture[:-5]
    assert _difference(ra.translate_y(picture, -5.0), expected) == 0
    assert _difference(ra.translate_x(picture, 100.0), np.full_like(picture, 128)) == 0


def test_shear_by_hand(picture):
    expected = np.full_like(picture, 128)
    for y in range(SIDE):
        expected[y, : SIDE - y] = picture[y, y:]
    assert _difference(ra.shear_x(picture, 1.0), expected) == 0
    upright = ra.shear_y(picture.transpose(1, 0, 2), 1.0)
    assert _difference(upright, expected.transpose(1, 0, 2)) == 0


@pytest.mark.parametrize(("y", "x"), [(10, 12), (0, 0), (23, 5)])
def test_cutout_by_hand(picture, y, x):
    expected = picture.copy()
    expected[max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = 128
    assert _difference(ra.cutout(picture, 4, y, x), expected) == 0
    assert _difference(ra.cutout(picture, 0, y, x), picture) == 0


def test_standard_grows_with_the_magnitude():
    levels = [ra.standard_levels(m / 2, 300) for m in range(1, 81)]
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


def test_standard_at_ten_and_in_shares_of_the_picture():
    levels = ra.standard_levels(10.0, 300)
    assert levels.degrees == 30.0 and levels.slope == pytest.approx(0.3)
    assert levels.translate_px == pytest.approx(100.0)
    assert levels.cutout_half_px == 40
    assert (levels.posterize_bits, levels.solarize_threshold) == (4, 128)
    assert levels.solarize_addition == 110
    assert levels.factors == (pytest.approx(0.1), pytest.approx(1.9))
    half = ra.standard_levels(10.0, 150)
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
    levels = ra.released_levels(magnitude, 300)
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
    levels = ra.released_levels(10.0, side)
    assert levels.contrast_mean == white
    flat = np.full((4, 4, 3), 40, np.uint8)
    pulled = ra.contrast(flat, 0.0, mean=levels.contrast_mean)
    assert pulled.numpy().max() == pulled.numpy().min() == white


@pytest.mark.parametrize("variant", ra.VARIANTS)
def test_each_operation_alone_in_a_graph_equals_eager(picture, variant):
    # 7.0: no operation is the identity there, in either variant.
    table = {"standard": ra.standard_levels, "released": ra.released_levels}[variant]
    eager = ra.operations(table(7.0, SIDE))
    augment = ra.make_randaugment(variant, magnitude=7.0, layers=1, image_size=SIDE)
    in_graph = tf.function(augment, autograph=False)
    for number, name in enumerate(eager):
        for direction in (0.2, 0.8):
            draws = tf.constant([(number + 0.5) / 16, direction, 0.5, 0.25])
            expected = eager[name](tf.constant(picture), draws)
            actual = in_graph(tf.constant(picture), draws)
            assert actual.dtype == tf.uint8
            np.testing.assert_array_equal(actual, expected, err_msg=name)
            assert _difference(actual, picture) > 0, name


def test_directions_differ(picture):
    operations = ra.operations(ra.standard_levels(5.0, SIDE))
    for name in ("Rotate", "Color", "Contrast", "Sharpness", "ShearX", "TranslateY"):
        one, other = (
            operations[name](tf.constant(picture), tf.constant([0.0, u, 0.5, 0.5]))
            for u in (0.1, 0.9)
        )
        assert _difference(one, other) > 0, name


def test_layers_follow_each_other(picture):
    augment = ra.make_randaugment("standard", magnitude=5.0, layers=2, image_size=SIDE)
    invert, posterize = (2 + 0.5) / 16, (4 + 0.5) / 16
    draws = tf.constant([invert, 0.0, 0.0, 0.0, posterize, 0.0, 0.0, 0.0])
    expected = ImageOps.posterize(ImageOps.invert(Image.fromarray(picture)), 6)
    assert _difference(augment(tf.constant(picture), draws), expected) == 0


def test_no_magnitude_or_layers_is_no_change(picture):
    for magnitude, layers in ((0.0, 2), (5.0, 0)):
        augment = ra.make_randaugment(
            "standard", magnitude=magnitude, layers=layers, image_size=SIDE
        )
        assert augment(picture, None) is picture


def test_bad_input():
    with pytest.raises(errors.InputError, match="standard, released"):
        ra.check("other", 2)
    with pytest.raises(errors.InputError, match="randaugment_layers: -1"):
        ra.check("standard", -1)

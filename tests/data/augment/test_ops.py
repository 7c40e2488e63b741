"""Run: pytest tests/data/augment/test_ops.py

Each operation against PIL, or against NumPy written from its definition.
"""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from ev2.data.augment import ops
from tests.helpers import images as pictures

SIDE = 24


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return pictures.ramps(SIDE)


@pytest.mark.parametrize(
    ("operation", "pil"),
    [
        (ops.equalize, ImageOps.equalize),
        (ops.invert, ImageOps.invert),
        *[
            (
                lambda p, b=b: ops.posterize(p, b),
                lambda i, b=b: ImageOps.posterize(i, b),
            )
            for b in range(1, 9)
        ],
        *[
            (lambda p, t=t: ops.solarize(p, t), lambda i, t=t: ImageOps.solarize(i, t))
            for t in (0, 1, 42, 128, 255, 256)
        ],
    ],
)
def test_exactly_as_pil(picture, operation, pil):
    assert pictures.difference(operation(picture), pil(Image.fromarray(picture))) == 0


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.55, 1.0, 1.9, 3.25])
@pytest.mark.parametrize(
    ("operation", "pil", "tolerance"),
    [
        (ops.brightness, ImageEnhance.Brightness, 1),
        (ops.color, ImageEnhance.Color, 1),  # grey differs by rounding
        (ops.contrast, ImageEnhance.Contrast, 1),
        (ops.sharpness, ImageEnhance.Sharpness, 1),  # smooth truncates, PIL rounds
    ],
)
def test_enhancements_as_pil(picture, operation, pil, tolerance, factor):
    expected = pil(Image.fromarray(picture)).enhance(factor)
    limit = 1 + tolerance * max(1.0, abs(1.0 - factor))
    assert pictures.difference(operation(picture, factor), expected) <= limit


def test_auto_contrast_stretches_each_channel(picture):
    expected = ImageOps.autocontrast(Image.fromarray(picture))
    stretched = ops.auto_contrast(picture)
    assert pictures.difference(stretched, expected) <= 1
    assert stretched.numpy().min((0, 1)).tolist() == [0, 0, 0]
    assert stretched.numpy().max((0, 1)).tolist() == [255, 255, 255]


@pytest.mark.parametrize("operation", [ops.auto_contrast, ops.equalize])
@pytest.mark.parametrize("value", [0, 40, 255])
def test_one_value_stays(operation, value):
    flat = np.full((5, 7, 3), value, np.uint8)
    assert pictures.difference(operation(flat), flat) == 0


def test_equalize_of_one_flat_channel(picture):
    picture = picture.copy()
    picture[..., 1] = 77
    expected = ImageOps.equalize(Image.fromarray(picture))
    assert pictures.difference(ops.equalize(picture), expected) == 0


def test_solarize_add_by_hand():
    picture = np.array([[[0, 20, 127], [128, 200, 255]]], np.uint8)
    assert ops.solarize_add(picture, 110).numpy().tolist() == [
        [[110, 130, 237], [128, 200, 255]]
    ]
    assert ops.solarize_add(picture, 250).numpy().tolist() == [
        [[250, 255, 255], [128, 200, 255]]
    ]


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (-90.0, -1), (180.0, 2)])
def test_rotate_quarter_turns(picture, degrees, turns):
    assert (
        pictures.difference(ops.rotate(picture, degrees), np.rot90(picture, turns)) == 0
    )


def test_rotate_fills_the_corners_with_grey(picture):
    turned = ops.rotate(picture, 45.0).numpy()
    assert turned[0, 0].tolist() == turned[-1, -1].tolist() == [128, 128, 128]


def test_translate_by_hand(picture):
    expected = np.full_like(picture, 128)
    expected[:, :-3] = picture[:, 3:]
    assert pictures.difference(ops.translate_x(picture, 3.0), expected) == 0
    expected = np.full_like(picture, 128)
    expected[5:] = picture[:-5]
    assert pictures.difference(ops.translate_y(picture, -5.0), expected) == 0
    assert (
        pictures.difference(ops.translate_x(picture, 100.0), np.full_like(picture, 128))
        == 0
    )


def test_shear_by_hand(picture):
    expected = np.full_like(picture, 128)
    for y in range(SIDE):
        expected[y, : SIDE - y] = picture[y, y:]
    assert pictures.difference(ops.shear_x(picture, 1.0), expected) == 0
    upright = ops.shear_y(picture.transpose(1, 0, 2), 1.0)
    assert pictures.difference(upright, expected.transpose(1, 0, 2)) == 0


def test_projection_as_tensorflows(picture):
    rng = np.random.RandomState(0)
    for _ in range(20):
        matrix = (np.eye(2, 3) + rng.uniform(-0.6, 0.6, (2, 3))).astype(np.float32)
        matrix[:, 2] *= 20
        expected = tf.raw_ops.ImageProjectiveTransformV3(
            images=picture[None],
            transforms=[[*matrix.ravel(), 0.0, 0.0]],
            output_shape=picture.shape[:2],
            fill_value=128.0,
            interpolation="NEAREST",
            fill_mode="CONSTANT",
        )[0]
        actual = ops._project(picture, tuple(matrix[0]), tuple(matrix[1]))
        np.testing.assert_array_equal(actual, expected)


def test_grey_as_tensorflows(picture):
    expected = tf.image.rgb_to_grayscale(tf.constant(picture)).numpy()
    np.testing.assert_array_equal(ops._grey(picture), expected.repeat(3, -1))


@pytest.mark.parametrize(("y", "x"), [(10, 12), (0, 0), (23, 5)])
def test_cutout_by_hand(picture, y, x):
    expected = picture.copy()
    expected[max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = 128
    assert pictures.difference(ops.cutout(picture, 4, y, x), expected) == 0
    assert pictures.difference(ops.cutout(picture, 0, y, x), picture) == 0

"""Each operation against PIL, or against NumPy written from its definition."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from ev2.data.augment import ops
from tests.helpers import image_files

SIDE = 24


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return image_files.ramps(SIDE)


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
def test_exactly_as_pil(image, operation, pil):
    assert image_files.difference(operation(image), pil(Image.fromarray(image))) == 0


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.55, 1.0, 1.9, 3.25])
@pytest.mark.parametrize(
    ("operation", "pil"),
    [
        (ops.brightness, ImageEnhance.Brightness),
        (ops.color, ImageEnhance.Color),  # grey differs by rounding
        (ops.contrast, ImageEnhance.Contrast),
        (ops.sharpness, ImageEnhance.Sharpness),  # smooth truncates, PIL rounds
    ],
)
def test_enhancements_as_pil(image, operation, pil, factor):
    expected = pil(Image.fromarray(image)).enhance(factor)
    limit = 1 + max(1.0, abs(1.0 - factor))
    assert image_files.difference(operation(image, factor), expected) <= limit


def test_auto_contrast_stretches_each_channel(image):
    expected = ImageOps.autocontrast(Image.fromarray(image))
    stretched = ops.auto_contrast(image)
    assert image_files.difference(stretched, expected) <= 1
    assert stretched.numpy().min((0, 1)).tolist() == [0, 0, 0]
    assert stretched.numpy().max((0, 1)).tolist() == [255, 255, 255]


@pytest.mark.parametrize("operation", [ops.auto_contrast, ops.equalize])
@pytest.mark.parametrize("value", [0, 40, 255])
def test_one_value_stays(operation, value):
    flat = np.full((5, 7, 3), value, np.uint8)
    assert image_files.difference(operation(flat), flat) == 0


def test_equalize_of_one_flat_channel(image):
    image = image.copy()
    image[..., 1] = 77
    expected = ImageOps.equalize(Image.fromarray(image))
    assert image_files.difference(ops.equalize(image), expected) == 0


def test_solarize_add_by_hand():
    image = np.array([[[0, 20, 127], [128, 200, 255]]], np.uint8)
    assert ops.solarize_add(image, 110).numpy().tolist() == [
        [[110, 130, 237], [128, 200, 255]]
    ]
    assert ops.solarize_add(image, 250).numpy().tolist() == [
        [[250, 255, 255], [128, 200, 255]]
    ]


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (-90.0, -1), (180.0, 2)])
def test_rotate_quarter_turns(image, degrees, turns):
    expected = np.rot90(image, turns)
    assert image_files.difference(ops.rotate(image, degrees), expected) == 0


def test_rotate_fills_the_corners_with_grey(image):
    turned = ops.rotate(image, 45.0).numpy()
    assert turned[0, 0].tolist() == turned[-1, -1].tolist() == [128, 128, 128]


def test_translate_by_hand(image):
    expected = np.full_like(image, 128)
    expected[:, :-3] = image[:, 3:]
    assert image_files.difference(ops.translate_x(image, 3.0), expected) == 0
    expected = np.full_like(image, 128)
    expected[5:] = image[:-5]
    assert image_files.difference(ops.translate_y(image, -5.0), expected) == 0
    assert (ops.translate_x(image, 100.0).numpy() == 128).all()


def test_shear_by_hand(image):
    expected = np.full_like(image, 128)
    for y in range(SIDE):
        expected[y, : SIDE - y] = image[y, y:]
    assert image_files.difference(ops.shear_x(image, 1.0), expected) == 0
    upright = ops.shear_y(image.transpose(1, 0, 2), 1.0)
    assert image_files.difference(upright, expected.transpose(1, 0, 2)) == 0


def test_projection_as_tensorflows(image):
    rng = np.random.RandomState(0)
    for _ in range(20):
        matrix = (np.eye(2, 3) + rng.uniform(-0.6, 0.6, (2, 3))).astype(np.float32)
        matrix[:, 2] *= 20
        expected = tf.raw_ops.ImageProjectiveTransformV3(
            images=image[None],
            transforms=[[*matrix.ravel(), 0.0, 0.0]],
            output_shape=image.shape[:2],
            fill_value=128.0,
            interpolation="NEAREST",
            fill_mode="CONSTANT",
        )[0]
        actual = ops.project(image, tuple(matrix[0]), tuple(matrix[1]))
        np.testing.assert_array_equal(actual, expected)


def test_grey_as_tensorflows(image):
    expected = tf.image.rgb_to_grayscale(tf.constant(image)).numpy()
    np.testing.assert_array_equal(ops.grey(image), expected.repeat(3, -1))


@pytest.mark.parametrize(("y", "x"), [(10, 12), (0, 0), (23, 5)])
def test_cutout_by_hand(image, y, x):
    expected = image.copy()
    expected[max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = 128
    assert image_files.difference(ops.cutout(image, 4, y, x), expected) == 0
    assert image_files.difference(ops.cutout(image, 0, y, x), image) == 0

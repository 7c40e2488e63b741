"""The sixteen operations of both augmentations: `[H, W, 3] uint8` images in and out.

An operation takes a physical quantity (degrees, pixels, bits). The image's sides are
static, so that the same code runs eagerly and in a graph.

Source: AutoAugment (arXiv 1805.09501), Table 6, and PIL, whose results they equal.
"""

import math
from collections.abc import Callable
from typing import Any

from ev2.data.tensorflow import tf

# Operations on integers are compiled by XLA, in one pass over the image and with the
# same result. Operations on fractions are not: XLA may round them differently.
_compiled = tf.function(autograph=False, jit_compile=True)
FILL = 128  # value of pixels from outside the image
GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)  # of red, green and blue


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0..255; a channel of one value stays."""
    low, high = _extremes(image)
    low, high = tf.cast(low, tf.float32), tf.cast(high, tf.float32)
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    offset = tf.where(high > low, low * scale, 0.0)
    values = tf.range(256, dtype=tf.float32)[None, :]
    return _look_up(image, _to_uint8(values * scale[:, None] - offset[:, None]))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Flattens each channel's histogram, by the rule of PIL's `ImageOps.equalize`."""
    height, width = _sides(image)
    counts = tf.raw_ops.Bincount(
        arr=_entries(image), size=768, weights=tf.constant([], tf.int32)
    )
    histogram = tf.reshape(counts, [3, 256])
    highest = tf.cast(_extremes(image)[1], tf.int32)
    last = tf.gather(histogram, highest, batch_dims=1)  # pixels of the highest value
    step = ((height * width - last) // 255)[:, None]  # [3, 1]
    before = tf.cumsum(histogram, axis=1, exclusive=True)
    table = tf.minimum((before + step // 2) // tf.maximum(step, 1), 255)
    table = tf.where(step > 0, table, tf.range(256)[None, :])
    return _look_up(image, tf.cast(table, tf.uint8))


@_compiled
def _look_up(image: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Replaces value v of channel c by `table[c, v]`, of `[3, 256] uint8`."""
    return tf.gather(tf.reshape(table, [768]), _entries(image))


@_compiled
def _pick(values: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    return tf.gather(values, indices)


@_compiled
def _entries(image: tf.Tensor) -> tf.Tensor:
    """Returns 256 c + v for value v in channel c: `[H, W, 3] int32`."""
    return tf.cast(image, tf.int32) + tf.constant([0, 256, 512])


@_compiled
def _extremes(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the lowest and highest value of each channel: `[3] uint8` both.

    Reduces over rows first, along the memory.
    """
    height, width = _sides(image)
    rows = tf.reshape(image, [height, width * 3])

    def over_pixels(reduce: Callable) -> tf.Tensor:
        return reduce(tf.reshape(reduce(rows, 0), [width, 3]), 0)

    return over_pixels(tf.reduce_min), over_pixels(tf.reduce_max)


def invert(image: tf.Tensor) -> tf.Tensor:
    """Replaces each value by 255 - value."""
    return 255 - image


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the highest `bits` bits, 0..8, of each value."""
    return tf.bitwise.bitwise_and(image, (0xFF << (8 - bits)) & 0xFF)


@_compiled
def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts the values at and above the threshold, 0..256."""
    if threshold > 255:
        return image
    inverted = tf.cast(image >= threshold, tf.uint8) * 255
    return tf.bitwise.bitwise_xor(image, inverted)


@_compiled
def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    """Adds 0..255 to the values below 128, ending at 255."""
    dark = tf.cast(image < 128, tf.uint8)
    return image + dark * tf.minimum(255 - image, addition)


def color(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Changes the saturation: 0 is grey, 1 the image, above 1 more vivid."""
    return _blend(grey(image), image, factor)


def contrast(
    image: tf.Tensor, factor: tf.Tensor | float, mean: int | None = None
) -> tf.Tensor:
    """Changes the contrast about a grey level: 0 is the level everywhere, 1 the image.

    Without `mean`, the level is the rounded mean of the image's grey version.
    """
    if mean is None:
        level = tf.floor(tf.reduce_mean(grey(image)) + 0.5)
    else:
        level = tf.constant(mean, tf.float32)
    return _blend(level, image, factor)


def brightness(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Changes the brightness: 0 is black, 1 the image, above 1 brighter."""
    return _blend(tf.constant(0.0), image, factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Changes the sharpness: 0 is smoothed, 1 the image, above 1 sharper.

    The smoothed pixel is a 13th of its eight neighbours and five times itself; the
    border is kept.
    """
    inside = _blend(_smooth(image), image[1:-1, 1:-1], factor)
    left, right = image[1:-1, :1], image[1:-1, -1:]
    inside = tf.concat([left, inside, right], axis=1)
    return tf.concat([image[:1], inside, image[-1:]], axis=0)


@_compiled
def _smooth(image: tf.Tensor) -> tf.Tensor:
    """Returns the smoothed pixels inside the border, truncated: `[H-2, W-2, 3]`."""
    height, width = _sides(image)
    pixels = tf.cast(tf.reshape(image, [height, width * 3]), tf.uint16)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    square = rows[:, :-6] + rows[:, 3:-3] + rows[:, 6:]
    smooth = (square + 4 * pixels[1:-1, 3:-3]) // 13  # at most 13 * 255, below 2^16
    return tf.reshape(tf.cast(smooth, tf.uint8), [height - 2, width - 2, 3])


def rotate(image: tf.Tensor, degrees: tf.Tensor | float) -> tf.Tensor:
    """Rotates about the centre, counter-clockwise for positive angles."""
    radians = degrees * (math.pi / 180.0)
    cos, sin = tf.cos(radians), tf.sin(radians)
    height, width = _sides(image)
    middle_y, middle_x = (height - 1) / 2.0, (width - 1) / 2.0
    x_offset = middle_x - cos * middle_x + sin * middle_y
    y_offset = middle_y - sin * middle_x - cos * middle_y
    return project(image, (cos, -sin, x_offset), (sin, cos, y_offset))


def shear_x(image: tf.Tensor, slope: tf.Tensor | float) -> tf.Tensor:
    """Moves row y left by slope * y pixels."""
    return project(image, (1.0, slope, 0.0), (0.0, 1.0, 0.0))


def shear_y(image: tf.Tensor, slope: tf.Tensor | float) -> tf.Tensor:
    """Moves column x up by slope * x pixels."""
    return project(image, (1.0, 0.0, 0.0), (slope, 1.0, 0.0))


def translate_x(image: tf.Tensor, pixels: tf.Tensor | float) -> tf.Tensor:
    """Moves left by the nearest whole number of pixels."""
    return _translate(image, axis=1, pixels=pixels)


def translate_y(image: tf.Tensor, pixels: tf.Tensor | float) -> tf.Tensor:
    """Moves up by the nearest whole number of pixels."""
    return _translate(image, axis=0, pixels=pixels)


@_compiled
def cutout(
    image: tf.Tensor, half: int, y: tf.Tensor, x: tf.Tensor, fill: Any = FILL
) -> tf.Tensor:
    """Fills rows y-half..y+half-1 and columns x-half..x+half-1, as far as inside.

    `fill` is one value or an image of the same size.
    """
    height, width = _sides(image)
    rows = tf.range(height)[:, None]
    columns = tf.repeat(tf.range(width), 3)[None, :]  # of [H, W * 3]
    in_rows = tf.cast((rows >= y - half) & (rows < y + half), tf.uint8)
    in_columns = tf.cast((columns >= x - half) & (columns < x + half), tf.uint8)
    covered = in_rows * in_columns
    flat = tf.reshape(image, [height, width * 3])
    if isinstance(fill, tf.Tensor):
        fill = tf.reshape(fill, [height, width * 3])
    return tf.reshape(flat * (1 - covered) + covered * fill, [height, width, 3])


# Below, pixels are selected by arithmetic and by copying runs: on a 300 px image
# `tf.where` takes ten times, ImageProjectiveTransformV3 three times as long.


@_compiled
def _translate(image: tf.Tensor, *, axis: int, pixels: tf.Tensor | float):
    shift = tf.cast(tf.floor(pixels + 0.5), tf.int32)
    after = tf.maximum(shift, 0)
    paddings = [[0, 0], [0, 0], [0, 0]]
    paddings[axis] = [tf.maximum(-shift, 0), after]
    begin = [0, 0, 0]
    begin[axis] = after
    padded = tf.pad(image, paddings, constant_values=FILL)
    return tf.slice(padded, begin, image.shape)


def project(image: tf.Tensor, to_x: tuple, to_y: tuple) -> tf.Tensor:
    """Replaces pixel (x, y) by the nearest to (a x + b y + c, d x + e y + f)."""
    height, width = _sides(image)
    x = tf.range(width, dtype=tf.float32)[None, :]
    y = tf.range(height, dtype=tf.float32)[:, None]
    source_x = _nearest(to_x[0] * x + to_x[1] * y + to_x[2], width)  # [H, W]
    source_y = _nearest(to_y[0] * x + to_y[1] * y + to_y[2], height)
    framed = tf.pad(image, [[1, 1], [1, 1], [0, 0]], constant_values=FILL)
    index = (source_y + 1) * (width + 2) + source_x + 1
    return _pick(tf.reshape(framed, [-1, 3]), index)


def _nearest(position: tf.Tensor, side: int) -> tf.Tensor:
    """Rounds half away from 0 to int32; -1 and `side` stand for all outside."""
    whole = tf.sign(position) * tf.floor(tf.abs(position) + 0.5)
    return tf.cast(tf.clip_by_value(whole, -1.0, float(side)), tf.int32)


def grey(image: tf.Tensor) -> tf.Tensor:
    """Returns `tf.image.rgb_to_grayscale` in three channels, whole float32 numbers."""
    # 255.5 / 255 and the truncation are that function's rounding.
    weights = tf.constant(GREY_WEIGHTS)[:, None] * (255.5 / 255.0)
    pixels = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
    grey = tf.floor(pixels @ tf.tile(weights, [1, 3]))
    return tf.reshape(grey, image.shape)


def _blend(start: tf.Tensor, end: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Returns start + factor * (end - start), clipped and truncated as PIL does."""
    start, end = tf.cast(start, tf.float32), tf.cast(end, tf.float32)
    return _to_uint8(start + factor * (end - start))


def _sides(image: tf.Tensor) -> tuple[int, int]:
    """Returns the static height and width."""
    height, width = image.shape[0], image.shape[1]
    assert height is not None and width is not None
    return height, width


def _to_uint8(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)

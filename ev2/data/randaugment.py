"""RandAugment: sixteen operations, of which a few are drawn for each picture.

Pictures are `[H, W, 3] uint8` in and out. Each operation takes the physical quantity
it needs (degrees, pixels, bits); how a magnitude becomes one is a row of a table, and
there are two tables: "standard", ours, and "released", the arithmetic of the released
code. Magnitude 10 is the scale's end; the recipes go beyond it, to 25.

Source: RandAugment (arXiv 1909.13719); tables.md, rows "RandAugment layers" and
"magnitudes above 10" for the released code's numbers.
"""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from ev2 import errors

VARIANTS = ("standard", "released")
MAX_LEVEL = 10.0  # magnitude at which the tables' quantities are reached
FILL = 128  # value of pixels that come from outside the picture
DRAWS_PER_LAYER = 4  # uniform numbers: operation, direction, cutout's y and x


def auto_contrast(picture: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0..255; a channel of one value stays."""
    low = tf.reduce_min(picture, [0, 1], keepdims=True)
    high = tf.reduce_max(picture, [0, 1], keepdims=True)
    low_float = tf.cast(low, tf.float32)
    scale = 255.0 / tf.maximum(tf.cast(high, tf.float32) - low_float, 1.0)
    stretched = _to_uint8(tf.cast(picture, tf.float32) * scale - low_float * scale)
    return tf.where(high > low, stretched, picture)


def equalize(picture: tf.Tensor) -> tf.Tensor:
    """Flattens each channel's histogram, by the rule of PIL's `ImageOps.equalize`."""
    height, width = _sides(picture)
    values = tf.transpose(tf.reshape(tf.cast(picture, tf.int32), [-1, 3]))  # [3, H*W]
    histogram = tf.raw_ops.DenseBincount(
        input=values, size=256, weights=tf.zeros([0], tf.int32)
    )  # [3, 256]
    highest = tf.reduce_max(values, axis=1)
    last = tf.gather(histogram, highest, batch_dims=1)  # pixels of the highest value
    step = (height * width - last) // 255  # [3]
    before = tf.cumsum(histogram, axis=1, exclusive=True)
    table = (before + step[:, None] // 2) // tf.maximum(step, 1)[:, None]
    table = tf.minimum(table, 255)
    mapped = tf.gather(table, values, batch_dims=1)  # [3, H*W]
    mapped = tf.where(step[:, None] > 0, mapped, values)
    return tf.cast(tf.reshape(tf.transpose(mapped), picture.shape), tf.uint8)


def invert(picture: tf.Tensor) -> tf.Tensor:
    """255 - value."""
    return 255 - picture


def posterize(picture: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the highest `bits` bits, 0..8, of each value."""
    return tf.bitwise.bitwise_and(picture, (0xFF << (8 - bits)) & 0xFF)


def solarize(picture: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts the values at and above the threshold, 0..256."""
    if threshold > 255:
        return picture
    return tf.where(picture < threshold, picture, 255 - picture)


def solarize_add(picture: tf.Tensor, addition: int) -> tf.Tensor:
    """Adds 0..255 to the values below 128, ending at 255."""
    raised = 255 - tf.maximum(255 - picture, addition) + addition
    return tf.where(picture < 128, raised, picture)


def color(picture: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Colourfulness: 0 is grey, 1 the picture, above 1 more vivid."""
    return _blend(tf.image.rgb_to_grayscale(picture), picture, factor)


def contrast(
    picture: tf.Tensor, factor: tf.Tensor | float, mean: int | None = None
) -> tf.Tensor:
    """Contrast about a grey level: 0 is that level everywhere, 1 the picture.

    The level is the rounded mean of the picture's grey version, unless `mean` is
    given.
    """
    if mean is None:
        grey = tf.cast(tf.image.rgb_to_grayscale(picture), tf.float32)
        level = tf.floor(tf.reduce_mean(grey) + 0.5)
    else:
        level = tf.constant(mean, tf.float32)
    return _blend(level, picture, factor)


def brightness(picture: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """0 is black, 1 the picture, above 1 brighter."""
    return _blend(tf.constant(0.0), picture, factor)


def sharpness(picture: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """0 is smoothed, 1 the picture, above 1 sharper; the border is kept.

    The smooth pixel is a 13th of its eight neighbours and five times itself.
    """
    pixels = tf.cast(picture, tf.float32)
    middle = pixels[1:-1, 1:-1]
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]  # [H-2, W, 3]
    square = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]  # [H-2, W-2, 3]
    smooth = _to_uint8((square + 4.0 * middle) / 13.0)
    inside = _blend(smooth, middle, factor)
    left, right = picture[1:-1, :1], picture[1:-1, -1:]
    inside = tf.concat([left, inside, right], axis=1)
    return tf.concat([picture[:1], inside, picture[-1:]], axis=0)


def rotate(picture: tf.Tensor, degrees: tf.Tensor | float) -> tf.Tensor:
    """Turns about the centre, counter-clockwise for positive angles."""
    radians = degrees * (math.pi / 180.0)
    cos, sin = tf.cos(radians), tf.sin(radians)
    height, width = _sides(picture)
    middle_y, middle_x = (height - 1) / 2.0, (width - 1) / 2.0
    x_offset = middle_x - cos * middle_x + sin * middle_y
    y_offset = middle_y - sin * middle_x - cos * middle_y
    return _project(picture, [cos, -sin, x_offset, sin, cos, y_offset])


def shear_x(picture: tf.Tensor, slope: tf.Tensor | float) -> tf.Tensor:
    """Row y moves left by slope * y pixels."""
    return _project(picture, [1.0, slope, 0.0, 0.0, 1.0, 0.0])


def shear_y(picture: tf.Tensor, slope: tf.Tensor | float) -> tf.Tensor:
    """Column x moves up by slope * x pixels."""
    return _project(picture, [1.0, 0.0, 0.0, slope, 1.0, 0.0])


def translate_x(picture: tf.Tensor, pixels: tf.Tensor | float) -> tf.Tensor:
    """Moves left."""
    return _project(picture, [1.0, 0.0, pixels, 0.0, 1.0, 0.0])


def translate_y(picture: tf.Tensor, pixels: tf.Tensor | float) -> tf.Tensor:
    """Moves up."""
    return _project(picture, [1.0, 0.0, 0.0, 0.0, 1.0, pixels])


def cutout(picture: tf.Tensor, half: int, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Fills rows y-half..y+half-1 and columns x-half..x+half-1, as far as inside."""
    height, width = _sides(picture)
    rows = tf.range(height)[:, None, None]
    columns = tf.range(width)[None, :, None]
    covered = (rows >= y - half) & (rows < y + half)
    covered &= (columns >= x - half) & (columns < x + half)
    return tf.where(covered, tf.constant(FILL, tf.uint8), picture)


def _project(picture: tf.Tensor, matrix: list) -> tf.Tensor:
    """Pixel (x, y) becomes that at (a x + b y + c, d x + e y + f), nearest."""
    transform = tf.stack([tf.cast(m, tf.float32) for m in (*matrix, 0.0, 0.0)])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=picture[tf.newaxis],
        transforms=transform[tf.newaxis],
        output_shape=picture.shape[:2],
        fill_value=float(FILL),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def _blend(start: tf.Tensor, end: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """start + factor * (end - start), clipped and truncated as PIL does."""
    start, end = tf.cast(start, tf.float32), tf.cast(end, tf.float32)
    return _to_uint8(start + factor * (end - start))


def _sides(picture: tf.Tensor) -> tuple[int, int]:
    """Height and width, static."""
    height, width = picture.shape[0], picture.shape[1]
    assert height is not None and width is not None
    return height, width


def _to_uint8(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)


@dataclasses.dataclass(frozen=True)
class Levels:
    """The quantities that a magnitude stands for, at one image size."""

    degrees: float  # rotate; the sign is drawn
    slope: float  # shear; the sign is drawn
    translate_px: float  # the sign is drawn
    cutout_half_px: int  # half the side of the square
    posterize_bits: int  # bits kept, 1..8
    solarize_threshold: int  # 0..256
    solarize_addition: int  # 0..255
    # Colour, contrast, brightness and sharpness: two factors, one of which is drawn.
    factors: tuple[float, float]
    contrast_mean: int | None  # grey level of contrast; None = the picture's mean


def standard_levels(magnitude: float, image_size: int) -> Levels:
    """Our table: every operation grows with the magnitude, in shares of the picture.

    At magnitude 10: 30 degrees, slope 0.3, a third of the side, a square of 4/15 of
    the side, 4 bits, threshold 128, addition 110, factors 0.1 and 1.9. Solarize and
    posterize reach full strength at 20 and 17.5, so that the paper's magnitudes (5
    to 25) still tell them from Invert and from black; the limits below end the rest.
    """
    level = magnitude / MAX_LEVEL
    change = 0.9 * level
    return Levels(
        degrees=min(30.0 * level, 90.0),
        slope=min(0.3 * level, 1.0),
        translate_px=image_size * min(level, 2.0) / 3.0,
        cutout_half_px=round(image_size * min(level, 2.5) * 2.0 / 15.0),
        posterize_bits=max(8 - int(4.0 * level), 1),
        solarize_threshold=max(256 - int(128.0 * level), 0),
        solarize_addition=min(int(110.0 * level), 255),
        factors=(max(1.0 - change, 0.1), 1.0 + change),
        contrast_mean=None,
    )


def released_levels(magnitude: float, image_size: int) -> Levels:
    """The released code's table, in absolute pixels and with its wrap-around.

    Solarize's threshold wraps as uint8 (10 and 20 invert everything); posterize
    weakens as the magnitude grows; magnitude 5 leaves the four factors at 1; contrast
    turns about (pixels of the picture) / 256, which is white from 256 px on.

    Differs: above 8 bits posterize shifts by a negative number there, which is
    undefined; here it keeps all 8.
    """
    level = magnitude / MAX_LEVEL
    factor = 1.8 * level + 0.1
    return Levels(
        degrees=30.0 * level,
        slope=0.3 * level,
        translate_px=100.0 * level,
        cutout_half_px=int(40.0 * level),
        posterize_bits=min(int(4.0 * level), 8),
        solarize_threshold=int(256.0 * level) % 256,
        solarize_addition=min(int(110.0 * level), 255),
        factors=(factor, factor),
        contrast_mean=min(image_size * image_size // 256, 255),
    )


def operations(levels: Levels) -> dict[str, Callable]:
    """The operations by name, as functions of (picture, draws `[4] float32`).

    Of the draws in [0, 1), the second gives the direction (sign or factor), and the
    third and fourth the centre of cutout.
    """

    def signed(operation: Callable, quantity: float) -> Callable:
        def apply(picture, draws):
            return operation(picture, tf.where(draws[1] < 0.5, -quantity, quantity))

        return apply

    def factored(operation: Callable, **options) -> Callable:
        def apply(picture, draws):
            return operation(
                picture, tf.where(draws[1] < 0.5, *levels.factors), **options
            )

        return apply

    def fixed(operation: Callable, *quantity: int) -> Callable:
        return lambda picture, draws: operation(picture, *quantity)

    def cut(picture, draws):
        y = tf.cast(draws[2] * picture.shape[0], tf.int32)
        x = tf.cast(draws[3] * picture.shape[1], tf.int32)
        return cutout(picture, levels.cutout_half_px, y, x)

    return {
        "AutoContrast": fixed(auto_contrast),
        "Equalize": fixed(equalize),
        "Invert": fixed(invert),
        "Rotate": signed(rotate, levels.degrees),
        "Posterize": fixed(posterize, levels.posterize_bits),
        "Solarize": fixed(solarize, levels.solarize_threshold),
        "Color": factored(color),
        "Contrast": factored(contrast, mean=levels.contrast_mean),
        "Brightness": factored(brightness),
        "Sharpness": factored(sharpness),
        "ShearX": signed(shear_x, levels.slope),
        "ShearY": signed(shear_y, levels.slope),
        "TranslateX": signed(translate_x, levels.translate_px),
        "TranslateY": signed(translate_y, levels.translate_px),
        "Cutout": cut,
        "SolarizeAdd": fixed(solarize_add, levels.solarize_addition),
    }


def check(variant: str, layers: int) -> None:
    """Raises InputError for a variant or number of layers that does not exist."""
    errors.check_choice("data.randaugment_variant", variant, VARIANTS)
    if layers < 0:
        raise errors.InputError(
            f"data.randaugment_layers: {layers}; allowed is 0 (none) or more"
        )


def make_randaugment(
    variant: str, *, magnitude: float, layers: int, image_size: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function of (picture `[S, S, 3] uint8`, draws) to such a picture.

    It applies `layers` operations, each drawn from the sixteen with equal chance and
    always applied; only those drawn are run. `draws` is `[layers * 4] float32` in
    [0, 1). With magnitude or layers 0 the picture comes back as it is.

    Args:
        variant: "standard" or "released".
        magnitude: 0 or more; 10 is the scale's end, not a limit.
        layers: operations per picture.
        image_size: side of the picture, px.
    """
    if magnitude == 0.0 or layers == 0:
        return lambda picture, draws: picture
    table = {"standard": standard_levels, "released": released_levels}[variant]
    chain = list(operations(table(magnitude, image_size)).values())

    shape = [image_size, image_size, 3]
    signature = (
        tf.TensorSpec(shape, tf.uint8),
        tf.TensorSpec([DRAWS_PER_LAYER], tf.float32),
    )
    branches = [
        tf.function(apply, autograph=False).get_concrete_function(*signature)
        for apply in chain
    ]

    def layer(picture, draws):
        choice = tf.cast(draws[0] * len(chain), tf.int32)
        (picture,) = tf.raw_ops.StatelessCase(
            branch_index=choice,
            input=[picture, draws],
            Tout=[tf.uint8],
            branches=branches,
            output_shapes=[shape],
        )
        return tf.ensure_shape(picture, shape)

    def apply_layers(picture, draws):
        for i in range(layers):
            first = i * DRAWS_PER_LAYER
            picture = layer(picture, draws[first : first + DRAWS_PER_LAYER])
        return picture

    return apply_layers

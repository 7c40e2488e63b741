"""RandAugment: a few operations drawn for each image, whose magnitude is one number.

Two tables define the strength of every operation by magnitude: "standard", ours, and
"released", the arithmetic of the released code. Magnitude 10 is the end of the scale;
the recipes go beyond it, to 25.

Source: RandAugment (arXiv 1909.13719); google/automl, efficientnetv2/autoaugment.py,
for the released code's numbers.
"""

import dataclasses
from collections.abc import Callable, Sequence

from ev2.data.augment import ops
from ev2.data.tensorflow import tf

MAX_LEVEL = 10.0  # magnitude at which the tables' quantities are reached
DRAWS_PER_LAYER = 4  # uniform numbers: operation, direction, cutout's y and x


@dataclasses.dataclass(frozen=True)
class Levels:
    """Quantities of all operations for one magnitude and image size."""

    degrees: float  # rotate; the sign is drawn
    slope: float  # shear; the sign is drawn
    translate_px: float  # the sign is drawn
    cutout_half_px: int  # half the side of the square
    posterize_bits: int  # bits kept, 1..8
    solarize_threshold: int  # 0..256
    solarize_addition: int  # 0..255
    # Colour, contrast, brightness and sharpness: two factors, one of which is drawn.
    factors: tuple[float, float]
    contrast_mean: int | None  # grey level of contrast; None = the image's mean


def standard_levels(magnitude: float, image_size: int) -> Levels:
    """Returns our table: every operation grows with the magnitude.

    At magnitude 10: 30 degrees, slope 0.3, a third of the side, a square of 4/15 of
    the side, 4 bits, threshold 128, addition 110, factors 0.1 and 1.9. Solarize and
    posterize reach full strength at 20 and 17.5, so that at the paper's magnitudes (5
    to 25) they still differ from Invert and from black; the limits below cap the
    other quantities.
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
    """Returns the released code's table, in absolute pixels and with its wrap-around.

    Solarize's threshold wraps as uint8 (10 and 20 invert everything); posterize
    weakens as the magnitude grows; magnitude 5 leaves the four factors at 1; contrast
    turns about (pixels of the image) / 256, which is white from 256 px on.

    Differs: above 8 bits posterize shifts by a negative number there, which is
    undefined; here it keeps all 8. At 0 bits it keeps 1, as TensorFlow does on CPU for
    a shift by 8. Sharpness divides by 13 exactly; there a sum of 13ths is sometimes
    one level lower. Grey is one level off in 188 of the 2^24 colours. A translation
    by exact half pixels rounds all columns alike.
    """
    level = magnitude / MAX_LEVEL
    factor = 1.8 * level + 0.1
    return Levels(
        degrees=30.0 * level,
        slope=0.3 * level,
        translate_px=100.0 * level,
        cutout_half_px=int(40.0 * level),
        posterize_bits=min(max(int(4.0 * level), 1), 8),
        solarize_threshold=int(256.0 * level) % 256,
        solarize_addition=min(int(110.0 * level), 255),
        factors=(factor, factor),
        contrast_mean=min(image_size * image_size // 256, 255),
    )


LEVELS = {"standard": standard_levels, "released": released_levels}


def make_operations(levels: Levels) -> dict[str, Callable]:
    """Returns the operations by name, as functions of (image, draws `[4] float32`).

    Of the draws in [0, 1), the second chooses the direction (sign or factor), the third
    and fourth the centre of cutout.
    """

    def drawn(operation: Callable, low: float, high: float, **options) -> Callable:
        def apply(image, draws):
            return operation(image, tf.where(draws[1] < 0.5, low, high), **options)

        return apply

    def signed(operation: Callable, quantity: float) -> Callable:
        return drawn(operation, -quantity, quantity)

    def factored(operation: Callable, **options) -> Callable:
        return drawn(operation, *levels.factors, **options)

    def fixed(operation: Callable, *quantity: int) -> Callable:
        return lambda image, draws: operation(image, *quantity)

    def cut(image, draws):
        y = tf.cast(draws[2] * image.shape[0], tf.int32)
        x = tf.cast(draws[3] * image.shape[1], tf.int32)
        return ops.cutout(image, levels.cutout_half_px, y, x)

    return {
        "AutoContrast": fixed(ops.auto_contrast),
        "Equalize": fixed(ops.equalize),
        "Invert": fixed(ops.invert),
        "Rotate": signed(ops.rotate, levels.degrees),
        "Posterize": fixed(ops.posterize, levels.posterize_bits),
        "Solarize": fixed(ops.solarize, levels.solarize_threshold),
        "Color": factored(ops.color),
        "Contrast": factored(ops.contrast, mean=levels.contrast_mean),
        "Brightness": factored(ops.brightness),
        "Sharpness": factored(ops.sharpness),
        "ShearX": signed(ops.shear_x, levels.slope),
        "ShearY": signed(ops.shear_y, levels.slope),
        "TranslateX": signed(ops.translate_x, levels.translate_px),
        "TranslateY": signed(ops.translate_y, levels.translate_px),
        "Cutout": cut,
        "SolarizeAdd": fixed(ops.solarize_add, levels.solarize_addition),
    }


def make_randaugment(
    variant: str, *, magnitude: float, layers: int, image_size: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function of (image `[S, S, 3] uint8`, draws) to an augmented image.

    It draws `layers` operations from the sixteen with equal probability and runs them.
    `draws` is `[layers * 4] float32` in [0, 1). With magnitude or layers 0 the image
    stays unchanged.

    Args:
        variant: "standard" or "released".
        magnitude: 0 or more; 10 is the end of the scale, but not a limit.
        layers: operations per image.
        image_size: side of the image, px.
    """
    if magnitude == 0.0 or layers == 0:
        return lambda image, draws: image
    chain = list(make_operations(LEVELS[variant](magnitude, image_size)).values())
    run_one = make_chooser(chain, image_size)

    def apply_layers(image, draws):
        for i in range(layers):
            first = i * DRAWS_PER_LAYER
            layer = draws[first : first + DRAWS_PER_LAYER]
            image = run_one(tf.cast(layer[0] * len(chain), tf.int32), image, layer)
        return image

    return apply_layers


def make_chooser(chain: Sequence[Callable], image_size: int) -> Callable:
    """Returns a function of (number, image, draws `[4]`) that runs `chain[number]`."""
    shape = [image_size, image_size, 3]
    signature = (
        tf.TensorSpec(shape, tf.uint8),
        tf.TensorSpec([DRAWS_PER_LAYER], tf.float32),
    )
    branches = [
        tf.function(apply, autograph=False).get_concrete_function(*signature)
        for apply in chain
    ]

    def run_one(number, image, draws):
        (image,) = tf.raw_ops.StatelessCase(
            branch_index=number,
            input=[image, draws],
            Tout=[tf.uint8],
            branches=branches,
            output_shapes=[shape],
        )
        return tf.ensure_shape(image, shape)

    return run_one

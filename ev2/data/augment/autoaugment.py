"""AutoAugment: one of 25 pairs of operations, found by search, for each image.

Source: AutoAugment (arXiv 1805.09501) for the method. The policy is v0 of
google/automl, which trains V2-B0..B3 and V1 with it; it differs from the table that
the article prints for ImageNet.
"""

import dataclasses
from collections.abc import Callable

from ev2.data.augment import randaugment
from ev2.data.tensorflow import tf

# Operation, probability, magnitude; the first of a pair, then the second.
POLICY_V0 = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)
OPERATIONS_PER_IMAGE = 2
# Uniform numbers: the pair, then four for each operation, whose first one applies it.
NUM_DRAWS = 1 + OPERATIONS_PER_IMAGE * randaugment.DRAWS_PER_LAYER


def released_levels(magnitude: float, image_size: int) -> randaugment.Levels:
    """Returns RandAugment's released table with 250 px of translation at magnitude 10.

    The one translation of the policy, 225 px, leaves nothing of a smaller image.
    """
    levels = randaugment.released_levels(magnitude, image_size)
    return dataclasses.replace(
        levels,
        translate_px=250.0 * magnitude / randaugment.MAX_LEVEL,
        cutout_half_px=int(100.0 * magnitude / randaugment.MAX_LEVEL),
    )


LEVELS = {"standard": randaugment.standard_levels, "released": released_levels}


def make_autoaugment(
    variant: str, *, image_size: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function of (image `[S, S, 3] uint8`, draws) to an augmented image.

    It draws a pair with equal probability, and runs each operation of the pair with the
    probability of the policy. `draws` is `[NUM_DRAWS] float32` in [0, 1).

    Args:
        variant: "standard" or "released", the table of magnitudes.
        image_size: side of the image, px.
    """
    steps = [(name, level) for pair in POLICY_V0 for name, _, level in pair]
    distinct = sorted(set(steps))
    run_one = randaugment.make_chooser(
        [lambda image, draws: image]
        + [
            randaugment.make_operations(LEVELS[variant](float(level), image_size))[name]
            for name, level in distinct
        ],
        image_size,
    )
    # Number 0 is the identity.
    numbers = tf.reshape([1 + distinct.index(step) for step in steps], [-1, 2])
    chances = tf.constant([[chance for _, chance, _ in pair] for pair in POLICY_V0])

    def apply_pair(image, draws):
        pair = tf.cast(draws[0] * len(POLICY_V0), tf.int32)
        for i in range(OPERATIONS_PER_IMAGE):
            first = 1 + i * randaugment.DRAWS_PER_LAYER
            layer = draws[first : first + randaugment.DRAWS_PER_LAYER]
            number = tf.where(layer[0] < chances[pair, i], numbers[pair, i], 0)
            image = run_one(number, image, layer)
        return image

    return apply_pair

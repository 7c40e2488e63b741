"""What happens to a training picture after its crop, as `config.data` says."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ev2 import errors
from ev2.data import autoaugment, randaugment

CHOICES = ("randaugment", "autoaugment", "none")


@dataclasses.dataclass(frozen=True)
class Augment:
    """`apply(picture [S, S, 3] uint8, draws)` gives such a picture.

    `draws` is `[num_draws] float32`, uniform in [0, 1).
    """

    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    num_draws: int


def make_augment(data: Any, *, magnitude: float, image_size: int) -> Augment:
    """Returns the augmentation of one stage.

    Args:
        data: `config.data`, for `augment` and `randaugment_*`.
        magnitude: of RandAugment; the others have none.
        image_size: side of the pictures, px.
    """
    variant, layers = data.randaugment_variant, data.randaugment_layers
    if data.augment == "autoaugment":
        apply = autoaugment.make_autoaugment(variant, image_size=image_size)
        return Augment(apply, autoaugment.NUM_DRAWS)
    if data.augment == "none":
        return Augment(lambda picture, draws: picture, 0)
    apply = randaugment.make_randaugment(
        variant, magnitude=magnitude, layers=layers, image_size=image_size
    )
    return Augment(apply, layers * randaugment.DRAWS_PER_LAYER)


def check(data: Any) -> None:
    """Raises InputError for an augmentation that does not exist."""
    errors.check_choice("data.augment", data.augment, CHOICES)
    randaugment.check(data.randaugment_variant, data.randaugment_layers)

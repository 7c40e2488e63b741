"""What happens to a training picture after its crop, as `config.data` says.

RandAugment, AutoAugment or neither, then perhaps cutout.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ev2 import errors
from ev2.data.augment import autoaugment, randaugment
from ev2.data.augment import ops as operations
from ev2.data.tensorflow import tf

CHOICES = ("randaugment", "autoaugment", "none")


@dataclasses.dataclass(frozen=True)
class Augment:
    """`apply(picture [S, S, 3] uint8, draws, seed)` gives such a picture.

    `draws` is `[num_draws] float32`, uniform in [0, 1); `seed`, `[2] int64`, is of the
    noise that fills cutout's square.
    """

    apply: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    num_draws: int


def make_augment(data: Any, *, magnitude: float, image_size: int) -> Augment:
    """Returns the augmentation of one stage.

    Args:
        data: `config.data`, for `augment`, `randaugment_*` and `cutout`.
        magnitude: of RandAugment; the others have none.
        image_size: side of the pictures, px.
    """
    variant, layers = data.randaugment_variant, data.randaugment_layers
    if data.augment == "autoaugment":
        change = autoaugment.make_autoaugment(variant, image_size=image_size)
        num_draws = autoaugment.NUM_DRAWS
    elif data.augment == "randaugment":
        change = randaugment.make_randaugment(
            variant, magnitude=magnitude, layers=layers, image_size=image_size
        )
        num_draws = layers * randaugment.DRAWS_PER_LAYER
    else:
        change, num_draws = (lambda picture, draws: picture), 0
    half = int(image_size * data.cutout / 2)

    def apply(picture, draws, seed):
        picture = change(picture, draws[:num_draws])
        return _cut(picture, draws[num_draws:], seed, half) if half else picture

    return Augment(apply, num_draws + (2 if half else 0))


def _cut(picture, draws, seed, half: int) -> tf.Tensor:
    """Fills a square about a random pixel, as far as inside, with noise.

    Differs from the released code's fine-tuning, which fills after normalization with
    numbers in [0, 1], the brighter half of the range: here it is all of 0..255.

    Args:
        picture: `[H, W, 3] uint8`.
        draws: `[2] float32` in [0, 1): the square's centre, y and x.
        seed: `[2] int64`.
        half: half the square's side, px.
    """
    height, width = picture.shape[0], picture.shape[1]
    words = tf.raw_ops.StatelessRandomUniformFullInt(
        shape=[-(-height * width * 3 // 4)], seed=seed, dtype=tf.int32
    )
    noise = tf.reshape(tf.bitcast(words, tf.uint8), [-1])[: height * width * 3]
    y = tf.cast(draws[0] * height, tf.int32)
    x = tf.cast(draws[1] * width, tf.int32)
    noise = tf.reshape(noise, [height, width, 3])
    return operations.cutout(picture, half, y, x, fill=noise)


def check(data: Any) -> None:
    """Raises InputError for an augmentation that does not exist."""
    errors.check_choice("data.augment", data.augment, CHOICES)
    randaugment.check(data.randaugment_variant, data.randaugment_layers)
    if not 0.0 <= data.cutout <= 1.0:
        raise errors.InputError(
            f"data.cutout: {data.cutout}; allowed is 0 (none) to 1, of the side"
        )

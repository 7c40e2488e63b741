"""Augments a training image after its crop: RandAugment or AutoAugment, then cutout."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ev2.data.augment import autoaugment, ops, randaugment
from ev2.data.tensorflow import tf


@dataclasses.dataclass(frozen=True)
class Augment:
    """One stage's augmentation of `[S, S, 3] uint8` images.

    `apply(image, draws, seed)` returns an image of the same shape. `draws` is
    `[num_draws] float32`, uniform in [0, 1); `seed`, `[2] int64`, seeds the noise that
    fills cutout's square.
    """

    apply: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    num_draws: int


def make_augment(data: Any, *, magnitude: float, image_size: int) -> Augment:
    """Returns the augmentation of one stage.

    Args:
        data: `config.data`, for `augment`, `randaugment_*` and `cutout`.
        magnitude: RandAugment's; other augmentations have none.
        image_size: side of the images, px.
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
        change, num_draws = (lambda image, draws: image), 0
    half = int(image_size * data.cutout / 2)

    def apply(image, draws, seed):
        image = change(image, draws[:num_draws])
        return _cut(image, draws[num_draws:], seed, half) if half else image

    return Augment(apply, num_draws + (2 if half else 0))


def _cut(image, draws, seed, half: int) -> tf.Tensor:
    """Fills a square about a random pixel, as far as inside, with noise.

    Differs: the released code's fine-tuning fills after normalization with numbers in
    [0, 1], the brighter half of the range; here the noise covers 0..255.

    Args:
        image: `[H, W, 3] uint8`.
        draws: `[2] float32` in [0, 1): the square's centre, y and x.
        seed: `[2] int64`.
        half: half the square's side, px.
    """
    height, width = image.shape[0], image.shape[1]
    words = tf.raw_ops.StatelessRandomUniformFullInt(
        shape=[-(-height * width * 3 // 4)], seed=seed, dtype=tf.int32
    )
    noise = tf.reshape(tf.bitcast(words, tf.uint8), [-1])[: height * width * 3]
    y = tf.cast(draws[0] * height, tf.int32)
    x = tf.cast(draws[1] * width, tf.int32)
    noise = tf.reshape(noise, [height, width, 3])
    return ops.cutout(image, half, y, x, fill=noise)

"""Input normalization: uint8 images to float32 with mean 0 and standard deviation 1."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Returns `(images - mean) / std` in float32.

    Args:
        images: `[N, H, W, 3]` uint8.
        mean, std: per channel, in units of 0..255.
    """
    shift = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, 3)
    scale = jnp.asarray(std, jnp.float32).reshape(1, 1, 1, 3)
    return (images.astype(jnp.float32) - shift) / scale

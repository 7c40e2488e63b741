"""The training loss: cross-entropy against soft targets, and the L2 term."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy over the images whose mask is 1, float32.

    Args:
        logits: `[N, classes]` float32.
        targets: `[N, classes]` float32, each row sums to 1.
        mask: `[N]` float32, 0 for images that could not be decoded.
    """
    losses = optax.losses.softmax_cross_entropy(logits, targets)
    return jnp.sum(losses * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def smoothed_one_hot(
    labels: jax.Array, num_classes: int, smoothing: float
) -> jax.Array:
    """Returns `[N, num_classes]` float32 targets with `smoothing` spread evenly.

    Args:
        labels: `[N]` int32; or `[N, L]` padded with -1, whose labels share the target
            equally, so that a row sums to 1.
        num_classes: of the network.
        smoothing: fraction that is spread.
    """
    hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)  # of -1 all zero
    if labels.ndim == 2:
        count = jnp.sum(labels >= 0, axis=1, keepdims=True, dtype=jnp.float32)
        hot = jnp.sum(hot, axis=1) / jnp.maximum(count, 1.0)
    return optax.losses.smooth_labels(hot, smoothing)


def l2(params: Any) -> jax.Array:
    """Returns half the sum of squares of all kernels, float32.

    Biases and BatchNorm's scale and offset are left out, as in the released code.
    """
    squares = [
        jnp.sum(jnp.square(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "kernel"
    ]
    return 0.5 * sum(squares, jnp.float32(0.0))

"""Accuracy as sums that can be added up in any order: hits, images, confusion."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def accuracy_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Returns int32 sums `top1`, `top5` and `count` over the images with mask 1.

    Args:
      logits: `[N, classes]` float32. A row that is not finite is never a hit.
      labels: `[N]` int32; or `[N, L]`, filled up with -1: the one that ranks highest
        counts.
      mask: `[N]` float32 of 0 and 1.

    Of equal logits the lower class ranks first, so a constant network does not score.
    """
    best, true = _best_label(logits, labels)
    classes = jnp.arange(logits.shape[1], dtype=labels.dtype)[None, :]
    ahead = (logits > true) | ((logits == true) & (classes < best))
    rank = jnp.sum(ahead, axis=1)
    valid = mask > 0
    finite = valid & jnp.all(jnp.isfinite(logits), axis=1)
    return {
        "top1": jnp.sum(finite & (rank < 1), dtype=jnp.int32),
        "top5": jnp.sum(finite & (rank < 5), dtype=jnp.int32),
        "count": jnp.sum(valid, dtype=jnp.int32),
    }


def _best_label(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The label of the highest logit, of equal ones the lowest, and its logit.

    Both are `[N, 1]`.
    """
    labels = labels.reshape(len(labels), -1)  # [N, L]
    scores = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1)
    scores = jnp.where(labels >= 0, scores, -jnp.inf)
    place = jnp.argmax(
        scores, axis=1, keepdims=True
    )  # labels ascend: ties to the lower
    return (
        jnp.take_along_axis(labels, place, axis=1),
        jnp.take_along_axis(scores, place, axis=1),
    )


def confusion_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[classes, classes]` int32 counts: row true class, column predicted."""
    num_classes = logits.shape[1]
    predicted = jnp.argmax(logits, axis=1)
    table = jnp.zeros((num_classes, num_classes), jnp.int32)
    return table.at[labels, predicted].add((mask > 0).astype(jnp.int32))


def fractions(sums: dict[str, Any]) -> dict[str, float | int]:
    """Returns `top1` and `top5` as fractions of `count`; 0 when nothing was counted."""
    count = int(np.asarray(sums["count"]))
    return {
        "top1": float(sums["top1"]) / max(count, 1),
        "top5": float(sums["top5"]) / max(count, 1),
        "count": count,
    }

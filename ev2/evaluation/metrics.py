"""Accuracy as sums that can be added in any order: hits, images, confusion matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def accuracy_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Returns int32 sums `top1`, `top5` and `count` over the images with mask 1.

    Of equal logits the lower class ranks first, so a constant network scores at chance.

    Args:
      logits: `[N, classes]` float32. A row that is not finite is never a hit.
      labels: `[N]` int32; or `[N, L]`, ascending and padded with -1: the label that
        ranks highest counts.
      mask: `[N]` float32 of 0 and 1.
    """
    label, label_logit = _best_label(logits, labels)
    classes = jnp.arange(logits.shape[1], dtype=labels.dtype)[None, :]
    ahead = (logits > label_logit) | ((logits == label_logit) & (classes < label))
    rank = jnp.sum(ahead, axis=1)
    valid = mask > 0
    finite = valid & jnp.all(jnp.isfinite(logits), axis=1)
    return {
        "top1": jnp.sum(finite & (rank < 1), dtype=jnp.int32),
        "top5": jnp.sum(finite & (rank < 5), dtype=jnp.int32),
        "count": jnp.sum(valid, dtype=jnp.int32),
    }


def _best_label(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each image's label with the highest logit, and that logit: `[N, 1]`."""
    labels = labels.reshape(len(labels), -1)  # [N, L]
    label_logits = jnp.take_along_axis(logits, jnp.maximum(labels, 0), axis=1)
    label_logits = jnp.where(labels >= 0, label_logits, -jnp.inf)
    best = jnp.argmax(label_logits, axis=1, keepdims=True)  # a tie: the lower label
    return (
        jnp.take_along_axis(labels, best, axis=1),
        jnp.take_along_axis(label_logits, best, axis=1),
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

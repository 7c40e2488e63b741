"""Mean average precision over a whole split, where pictures have several labels.

Of a class, all pictures are put in the order of its score, the log-probability. At each
picture that has the class, precision is the share of those with at least its score that
have the class too; their mean is the class's average precision (scikit-learn's
`average_precision_score`), and the mean over all classes that any picture has is ours.

Exact, and without keeping the scores of 100,000 pictures in 21,841 classes: one pass
takes the scores of each picture's own classes, a second counts what reaches them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import sharding
from ev2.models import model as models
from ev2.train import step

Batches = Callable[[], Iterable[dict[str, jax.Array]]]


def mean_average_precision(
    model: models.Model,
    weights: dict[str, Any],
    config: ConfigDict,
    mesh: Mesh,
    batches: Batches,
) -> dict[str, float]:
    """Returns it for each set of weights, from 0 to 1.

    Args:
      model: the network.
      weights: `{name: variables}`, on the mesh.
      config: keys `data.mean` and `data.std`.
      mesh: devices to run on.
      batches: gives the split's batches on the mesh, anew at each call: "image",
        "label" `[N, L]` filled up with -1, and "mask".
    """
    everywhere, split = sharding.replicated(mesh), sharding.split_by_image(mesh)
    # One program for both passes: the same picture gets the same bits.
    score = jax.jit(
        _make_score_step(model, config),
        in_shardings=(everywhere, split),
        out_shardings=split,
    )
    take = jax.jit(_own_scores, out_shardings=everywhere)
    count = jax.jit(count_at_least, out_shardings=everywhere)
    own: dict[str, list[np.ndarray]] = {name: [] for name in weights}
    classes = []
    for batch in batches():
        found = jax.device_get(take(score(weights, batch), batch))
        labelled = found["labels"] >= 0
        classes.append(found["labels"][labelled])
        for name, values in found["scores"].items():
            own[name].append(values[labelled])
    labels = np.concatenate(classes)
    scores = {name: np.concatenate(parts) for name, parts in own.items()}
    totals = {name: np.zeros(len(labels), np.int64) for name in weights}
    for batch in batches():
        for name, values in score(weights, batch).items():
            totals[name] += np.asarray(
                count(values, batch["mask"], labels, scores[name]), np.int64
            )
    return {
        name: average_over_classes(labels, scores[name], totals[name])
        for name in weights
    }


def _make_score_step(model: models.Model, config: ConfigDict) -> Callable[..., Any]:
    """Returns `score(weights, batch) -> {name: [N, classes] float32}`."""

    def score(weights, batch):
        images = step.normalize(batch["image"], config.data.mean, config.data.std)

        def scores_of(variables):
            scores = jax.nn.log_softmax(model.apply(variables, images, train=False))
            return jnp.where(jnp.isnan(scores), -jnp.inf, scores)  # never ahead

        return {name: scores_of(variables) for name, variables in weights.items()}

    return score


def _own_scores(scores: dict[str, jax.Array], batch: dict[str, jax.Array]) -> Any:
    """Scores of the labels of each picture, `[N, L]`; without a picture no label."""
    labels = jnp.where(batch["mask"][:, None] > 0, batch["label"], -1)
    places = jnp.maximum(labels, 0)
    taken = {n: jnp.take_along_axis(s, places, axis=1) for n, s in scores.items()}
    return {"labels": labels, "scores": taken}


def count_at_least(
    scores: jax.Array, mask: jax.Array, classes: jax.Array, thresholds: jax.Array
) -> jax.Array:
    """Returns how many pictures have at least a score in a class: `[P]` int32.

    Args:
      scores: `[N, classes]` float32.
      mask: `[N]` float32 of 0 and 1.
      classes: `[P]` int32.
      thresholds: `[P]` float32.
    """
    reached = (scores[:, classes] >= thresholds[None, :]) & (mask[:, None] > 0)
    return jnp.sum(reached, axis=0, dtype=jnp.int32)


def average_over_classes(
    classes: np.ndarray, scores: np.ndarray, at_least: np.ndarray
) -> float:
    """Returns the mean average precision, from the pairs of a picture and its class.

    Args:
      classes: `[P]` int, in any order.
      scores: `[P]` float32, of the class in that picture.
      at_least: `[P]` int, pictures of the split that have at least that score in it.
    """
    order = np.lexsort((-scores, classes))
    classes, scores, at_least = classes[order], scores[order], at_least[order]
    starts = np.flatnonzero(np.diff(classes, prepend=classes[0] - 1))
    sizes = np.diff(starts, append=len(classes))
    place = np.arange(len(classes)) - np.repeat(starts, sizes)
    # Of equal scores in a class the last place counts for all.
    is_last = np.ones(len(classes), bool)
    is_last[:-1] = (np.diff(scores) != 0) | (np.diff(classes) != 0)
    ends = np.flatnonzero(is_last)
    true = place[ends[np.searchsorted(ends, np.arange(len(classes)))]] + 1
    precision = true / np.maximum(at_least, true)
    return float(np.mean(np.add.reduceat(precision, starts) / sizes))

"""Accuracy sums, confusion and losses, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ev2.evaluation import metrics
from ev2.train import losses


def test_accuracy_sums_by_hand():
    logits = jnp.array(
        [
            [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],  # label 0: first
            [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],  # label 4: fifth
            [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],  # label 5: sixth
            [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],  # label 0 but masked
        ]
    )
    sums = metrics.accuracy_sums(
        logits, jnp.array([0, 4, 5, 0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    )
    assert {k: int(v) for k, v in sums.items()} == {"top1": 1, "top5": 2, "count": 3}
    assert metrics.fractions(sums) == {"top1": 1 / 3, "top5": 2 / 3, "count": 3}


def test_equal_or_broken_logits_do_not_score():
    labels = jnp.array([7, 7])
    logits = jnp.stack([jnp.zeros(10), jnp.full(10, jnp.nan)])
    sums = metrics.accuracy_sums(logits, labels, jnp.ones(2))
    assert int(sums["top1"]) == 0 and int(sums["top5"]) == 0
    assert int(sums["count"]) == 2


def test_any_of_several_labels_is_right():
    """Rows of labels are filled up with -1; the best of a row decides."""
    logits = jnp.tile(jnp.array([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0]]), (4, 1))
    labels = jnp.array([[0, 5, -1], [4, 5, -1], [5, -1, -1], [1, 2, 3]])
    sums = metrics.accuracy_sums(logits, labels, jnp.ones(4))
    assert {k: int(v) for k, v in sums.items()} == {"top1": 1, "top5": 3, "count": 4}
    constant = metrics.accuracy_sums(jnp.zeros((1, 6)), labels[1:2], jnp.ones(1))
    assert int(constant["top1"]) == 0 and int(constant["top5"]) == 1


def test_several_labels_share_the_target():
    labels = jnp.array([[1, 3, -1], [0, -1, -1], [0, 2, 3]])
    targets = np.asarray(losses.smoothed_one_hot(labels, 4, 0.0))
    third = 1 / 3
    expected = [[0, 0.5, 0, 0.5], [1, 0, 0, 0], [third, 0, third, third]]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
    smoothed = np.asarray(losses.smoothed_one_hot(labels, 4, 0.1))
    np.testing.assert_allclose(smoothed, 0.9 * np.array(expected) + 0.025, rtol=1e-6)
    np.testing.assert_allclose(smoothed.sum(1), 1.0, rtol=1e-6)


def test_confusion_counts_only_what_is_valid():
    logits = jnp.eye(3)[jnp.array([0, 1, 1, 2])]
    table = metrics.confusion_sums(
        logits, jnp.array([0, 0, 1, 2]), jnp.array([1.0, 1.0, 1.0, 0.0])
    )
    np.testing.assert_array_equal(table, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])


def test_smoothed_cross_entropy_by_hand():
    targets = losses.smoothed_one_hot(jnp.array([1, 0]), 4, 0.1)
    np.testing.assert_allclose(targets[0], [0.025, 0.925, 0.025, 0.025], rtol=1e-6)
    logits = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(np.asarray(targets) * log_softmax).sum(1)
    loss = losses.cross_entropy(jnp.asarray(logits), targets, jnp.array([1.0, 0.0]))
    assert float(loss) == pytest.approx(expected[0], rel=1e-6)
    both = losses.cross_entropy(jnp.asarray(logits), targets, jnp.ones(2))
    assert float(both) == pytest.approx(expected.mean(), rel=1e-6)


def test_l2_takes_kernels_alone():
    params = {
        "conv": {"kernel": jnp.full((2, 2), 3.0)},
        "norm": {"scale": jnp.full(5, 7.0), "bias": jnp.full(5, 7.0)},
    }
    assert float(losses.l2(params)) == pytest.approx(0.5 * 4 * 9)

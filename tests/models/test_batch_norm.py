"""Batch normalization against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ev2 import errors
from ev2.models.batch_norm import BatchNorm
from tests.helpers.arrays import normal


def batch_norm(x, *, train, variables=None, **options):
    """Returns normalized `x`, float32, and the running statistics."""
    norm = BatchNorm(**options)
    if variables is None:
        variables = norm.init(jax.random.key(0), x, train=False)
    affine, new = norm.apply(variables, x, train=train, mutable=["batch_stats"])
    return affine(x), new["batch_stats"]


@pytest.mark.parametrize("group_images", [0, 2, 6])
def test_batch_norm_is_the_formula(group_images):
    x = normal(6, 3, 5, 4) * 3 + 2
    scale, bias = normal(4, seed=1), normal(4, seed=2)
    old_mean, old_var = normal(4, seed=3), normal(4, seed=4) ** 2
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": old_mean, "var": old_var},
    }
    y, stats = batch_norm(
        x,
        train=True,
        variables=variables,
        momentum=0.9,
        epsilon=1e-3,
        group_images=group_images,
    )

    groups = np.split(x.astype(np.float64), 6 // (group_images or 6))
    means = [group.mean((0, 1, 2)) for group in groups]
    variances = [group.var((0, 1, 2)) for group in groups]
    want = np.concatenate(
        [
            (group - mean) / np.sqrt(variance + 1e-3) * scale + bias
            for group, mean, variance in zip(groups, means, variances, strict=True)
        ]
    )
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    want_mean = 0.9 * old_mean + 0.1 * np.mean(means, axis=0)
    want_var = 0.9 * old_var + 0.1 * np.mean(variances, axis=0)
    np.testing.assert_allclose(stats["mean"], want_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], want_var, rtol=1e-4, atol=1e-6)


def test_batch_norm_evaluates_with_running_statistics():
    x = normal(2, 3, 3, 2)
    variables = {
        "params": {"scale": np.ones(2, np.float32), "bias": np.ones(2, np.float32)},
        "batch_stats": {
            "mean": np.array([1, -1], np.float32),
            "var": np.array([4, 0], np.float32),
        },
    }
    y, stats = batch_norm(x, train=False, variables=variables, epsilon=0.25)
    want = (x - [1, -1]) / np.sqrt([4.25, 0.25]) + 1
    np.testing.assert_allclose(y, want, rtol=1e-5)
    np.testing.assert_array_equal(stats["mean"], [1, -1])


def test_batch_norm_keeps_statistics_in_float32():
    # Mean 16, deviation 1: sums of 1024 numbers in bfloat16 would be wrong.
    x = jnp.asarray(normal(64, 4, 4, 2) + np.array([0, 16]), jnp.bfloat16)
    _, stats = batch_norm(x, train=True, momentum=0.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(stats["mean"], exact.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(stats["var"], exact.var((0, 1, 2)), rtol=1e-3)


def test_batch_norm_refuses_groups_that_do_not_fit():
    message = "model.bn_group_images: 4 does not divide the batch of 6 images"
    with pytest.raises(errors.InputError, match=message):
        batch_norm(normal(6, 2, 2, 3), train=True, group_images=4)

"""The product with moments in its fast form against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ev2.models.ops import moments
from tests.helpers import arrays


def normal(*shape, seed=0):
    return jnp.asarray(arrays.normal(*shape, seed=seed))


def values_and_gradients(product, x, kernel):
    values, pullback = jax.vjp(product, x, kernel)
    # Gradients of the moments that are as large, over all pixels, as those of y.
    weights = normal(4, 5, 3, 12, seed=2), 60 * normal(12, seed=3), normal(12, seed=4)
    cotangents = [w.astype(v.dtype) for w, v in zip(weights, values, strict=True)]
    return values, pullback(tuple(cotangents))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_fast_and_plain_forms_agree(dtype, tolerance):
    x = (normal(4, 5, 3, 6) + 1).astype(dtype)
    kernel = normal(6, 12, seed=1).astype(dtype)
    fast = values_and_gradients(moments.fast_product, x, kernel)
    plain = values_and_gradients(moments.plain_product, x, kernel)
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        error = np.linalg.norm(np.float64(a) - np.float64(b))
        assert error <= tolerance * np.linalg.norm(np.float64(b))


def test_the_moments_are_the_products_mean_and_square():
    x, kernel = normal(4, 5, 3, 6), normal(6, 12, seed=1)
    y, mean, square = moments.product(x, kernel)
    want = np.float64(x) @ np.float64(kernel)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, want.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(square, (want**2).mean((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("platform, products", [("cpu", 3), ("tpu", 8)])
def test_the_platform_picks_the_form(platform, products):
    # Value and two gradients; x' x, x times a square, three without pixels.
    def loss(x, kernel):
        return sum(jnp.sum(jnp.sin(v)) for v in moments.product(x, kernel))

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    traced = step.trace(normal(2, 4, 4, 6), normal(6, 12))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.dot_general") == products


def test_more_pixels_than_an_int32_holds():
    # v3-2048 with 128 images of 300 px a core: 5.9e9 pixels after the stem.
    x = jax.ShapeDtypeStruct((128 * 2048, 150, 150, 24), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((24, 96), jnp.bfloat16)

    def total(x, kernel):
        return sum(jnp.sum(part) for part in moments.fast_product(x, kernel)[1:])

    dx, dkernel = jax.eval_shape(jax.grad(total, argnums=(0, 1)), x, kernel)
    assert (dx.shape, dkernel.shape) == (x.shape, kernel.shape)

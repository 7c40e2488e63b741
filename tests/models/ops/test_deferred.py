"""The fast forms of squeeze and product against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ev2.models.model import create_model
from ev2.models.ops import deferred, moments
from tests.helpers import arrays


def normal(*shape, seed=0):
    return jnp.asarray(arrays.normal(*shape, seed=seed))


def inputs(groups, dtype=jnp.float32):
    x = (2 * normal(4, 5, 3, 6) + 1).astype(dtype)
    affine = deferred.Affine(
        normal(groups, 1, 1, 6, seed=1),
        normal(groups, 1, 1, 6, seed=2),
        normal(1, 1, 1, 6, seed=3),
    )
    gate, kernel = normal(4, 1, 1, 6, seed=4), normal(6, 7, seed=5)
    return x, affine, gate.astype(dtype), kernel.astype(dtype)


def squeezed_and_projected(squeeze, project, args):
    """Values and the gradients of both, each mixed with fixed random numbers."""

    def run(x, affine, gate, kernel):
        return squeeze(nn.silu, x, affine), project(nn.silu, x, affine, gate, kernel)

    @jax.jit
    def value_and_gradients(args):
        values, pullback = jax.vjp(run, *args)
        weights = normal(4, 1, 1, 6, seed=6), normal(4, 5, 3, 7, seed=7)
        cotangents = [w.astype(v.dtype) for w, v in zip(weights, values, strict=True)]
        return values, pullback(tuple(cotangents))

    return value_and_gradients(args)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_fast_and_plain_forms_agree(dtype, tolerance, groups, gated):
    x, affine, gate, kernel = inputs(groups, jnp.dtype(dtype))
    args = x, affine, gate if gated else None, kernel
    fast = squeezed_and_projected(deferred.fast_squeeze, deferred.fast_project, args)
    plain = squeezed_and_projected(deferred.plain_squeeze, deferred.plain_project, args)
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        error = np.linalg.norm(np.float64(a) - np.float64(b))
        assert error <= tolerance * np.linalg.norm(np.float64(b))


def test_the_forms_are_the_formula():
    x, affine, gate, kernel = inputs(1)
    z = (np.float64(x) - affine.mean) * affine.gain + affine.bias
    y = z / (1 + np.exp(-z))
    later = deferred.Deferred(nn.silu, x, affine)
    mean = deferred.pixel_mean(later)
    np.testing.assert_allclose(
        mean, y.mean((1, 2), keepdims=True), rtol=1e-5, atol=1e-6
    )
    want = (y * gate) @ np.float64(kernel)
    projected = deferred.multiply(later, gate).project(kernel)
    np.testing.assert_allclose(projected, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group_images", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_networks_agree_in_both_forms(group_images, monkeypatch):
    blocks = ("r1_k3_s1_e2_i24_o24_c1", "r2_k3_s1_e4_i24_o24_se0.25")
    model = create_model(
        "efficientnetv2-s", num_classes=3, blocks=blocks, bn_group_images=group_images
    )
    variables = model.init(jax.random.key(0), image_size=16)
    images = normal(4, 16, 16, 3)

    def loss(params, images):
        logits, batch_stats = model.apply(
            {**variables, "params": params}, images, train=True
        )
        return jnp.sum(jnp.sin(logits)), batch_stats

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    plain = jax.jit(step)(variables["params"], images)
    monkeypatch.setattr(deferred, "squeeze", deferred.fast_squeeze)
    monkeypatch.setattr(deferred, "project", deferred.fast_project)
    monkeypatch.setattr(moments, "product", moments.fast_product)
    traced = jax.jit(lambda *args: step(*args)).trace(variables["params"], images)
    assert "optimization_barrier" in str(traced.jaxpr)
    fast = traced.lower().compile()(variables["params"], images)
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        # A kernel before a BatchNorm of constants has no gradient but rounding.
        error = np.linalg.norm(np.float64(a) - np.float64(b))
        assert error <= 1e-5 * max(np.linalg.norm(np.float64(b)), 0.1)


@pytest.mark.parametrize("platform, fast", [("cpu", False), ("tpu", True)])
@pytest.mark.parametrize("part", ["squeeze", "project"])
def test_the_platform_picks_the_form(part, platform, fast):
    def loss(x, affine, gate, kernel):
        later = deferred.Deferred(nn.silu, x, affine, gate)
        if part == "squeeze":
            return jnp.sum(deferred.pixel_mean(later))
        return jnp.sum(later.project(kernel))

    traced = jax.jit(jax.grad(loss)).trace(*inputs(1))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == fast

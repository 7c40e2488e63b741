"""Every form of a convolution and of its gradients against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ev2.models.ops import convolution
from tests.helpers.arrays import normal


def by_xla(x, kernel, *, stride, padding, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME" if padding == "same" else [(len(kernel) // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(conv, x, kernel, cotangent):
    y, pullback = jax.vjp(conv, x, kernel)
    return y, pullback(cotangent)


def check_agreement(
    ours, x, kernel, *, stride=1, padding="same", groups=1, tolerance=1e-5
):
    ours = functools.partial(ours, stride=stride, padding=padding)
    theirs = functools.partial(by_xla, stride=stride, padding=padding, groups=groups)
    shape = jax.eval_shape(theirs, x, kernel).shape
    cotangent = jnp.asarray(normal(*shape, seed=2), x.dtype)
    got = value_and_gradients(ours, x, kernel, cotangent)
    want = value_and_gradients(
        theirs, *(value.astype(jnp.float32) for value in (x, kernel, cotangent))
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == x.dtype
        limit = tolerance * float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=limit)


SIZES = pytest.mark.parametrize("height, width", [(7, 8), (8, 5), (1, 2)])
STRIDES = pytest.mark.parametrize("stride", [1, 2])
PADDINGS = pytest.mark.parametrize("padding", ["same", "symmetric"])


@SIZES
@STRIDES
@PADDINGS
@pytest.mark.parametrize("side", [3, 5])
def test_depthwise_forms_agree(padding, side, stride, height, width):
    check_agreement(
        convolution.depthwise_conv,
        normal(4, height, width, 6),
        normal(side, side, 1, 6, seed=1),
        stride=stride,
        padding=padding,
        groups=6,
    )


@STRIDES
@PADDINGS
@pytest.mark.parametrize("channels", [3, 32])  # XLA's gradient, and products
@pytest.mark.parametrize("height, width", [(7, 8)])
def test_dense_forms_agree(height, width, channels, padding, stride):
    check_agreement(
        convolution.conv,
        normal(4, height, width, channels),
        normal(3, 3, channels, 32, seed=1),
        stride=stride,
        padding=padding,
    )


# One image is not divided, 17 have no divisor, 24 are added up in two groups.
@pytest.mark.parametrize("images", [1, 17, 24])
def test_any_number_of_images(images):
    check_agreement(
        convolution.depthwise_conv,
        normal(images, 6, 4, 3),
        normal(3, 3, 1, 3, seed=1),
        stride=2,
        groups=3,
    )


@pytest.mark.parametrize("depthwise", [True, False])
def test_forms_agree_in_bfloat16(depthwise):
    check_agreement(
        convolution.depthwise_conv if depthwise else convolution.conv,
        jnp.asarray(normal(4, 8, 8, 32), jnp.bfloat16),
        jnp.asarray(normal(3, 3, 1 if depthwise else 32, 32, seed=1), jnp.bfloat16),
        groups=32 if depthwise else 1,
        tolerance=2e-2,
    )


@pytest.mark.parametrize("platform, grouped", [("cpu", False), ("tpu", True)])
def test_the_platform_picks_the_depthwise_form(platform, grouped):
    def gradients(x, kernel):
        y, pullback = jax.vjp(
            functools.partial(convolution.depthwise_conv, stride=1), x, kernel
        )
        return pullback(y)

    traced = jax.jit(gradients).trace(normal(1, 8, 8, 4), normal(3, 3, 1, 4))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == (3 if grouped else 0)


def test_depthwise_sums_in_float32_in_bfloat16():
    x = jnp.full((1, 3, 3, 1), 1.0, jnp.bfloat16)
    # 256 + 1 is 256 in bfloat16: eight ones would be lost one by one.
    kernel = jnp.ones((3, 3, 1, 1), jnp.bfloat16).at[0, 0].set(256.0)
    y = convolution.depthwise_conv(x, kernel, stride=1)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 1, 1, 0]) == 264.0

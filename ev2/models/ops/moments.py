"""A widening 1x1 convolution with the moments of its output, for batch normalization.

Batch normalization subtracts the mean of the output `y = x @ kernel` and divides by its
standard deviation, so the gradient by `y` has the form `dy + a + b * y` with `a` and
`b` constant over pixels. Both gradients of the product are linear in it, and the term
`b * y` can be written by `x`:

    by kernel:  x' (b y) = (x' x) kernel b
    by x:       (b y) kernel' = x (kernel b kernel')

with `'` for transposed. On TPU the gradient then does not read `y`, which is wider than
`x`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_PIXELS = (0, 1, 2)  # of [N, H, W, C]

# y [N, H, W, F]; mean of y and of y^2, float32 [F].
Product = tuple[jax.Array, jax.Array, jax.Array]


@jax.jit  # one trace a shape
def product(x: jax.Array, kernel: jax.Array) -> Product:
    """Returns the 1x1 convolution with its mean and mean square over pixels.

    The form is chosen at lowering.

    Args:
        x: `[N, H, W, C]`.
        kernel: `[C, F]`, of the dtype of `x`.
    """
    return lax.platform_dependent(x, kernel, tpu=fast_product, default=plain_product)


def plain_product(x: jax.Array, kernel: jax.Array) -> Product:
    """Returns product and moments in the plain form."""
    y = _times(x, kernel)
    wide = y.astype(jnp.float32)
    return y, jnp.mean(wide, _PIXELS), jnp.mean(jnp.square(wide), _PIXELS)


@jax.custom_vjp
def fast_product(x: jax.Array, kernel: jax.Array) -> Product:
    """As `plain_product`; its gradient does not read the product."""
    return plain_product(x, kernel)


def _backward(saved: Any, gradients: Product):
    x, kernel = saved
    dy, dmean, dsquare = gradients
    # A float: on a large slice there are more than an int32 holds.
    num_pixels = float(x.shape[0] * x.shape[1] * x.shape[2])
    a, b = dmean / num_pixels, 2 * dsquare / num_pixels
    wide = kernel.astype(jnp.float32)
    over_pixels = functools.partial(
        lax.dot_general, dimension_numbers=((_PIXELS, _PIXELS), ((), ()))
    )
    squares = over_pixels(x, x, preferred_element_type=jnp.float32)  # [C, C]
    total = jnp.sum(x.astype(jnp.float32), _PIXELS)
    dkernel = over_pixels(x, dy).astype(jnp.float32)
    dkernel += squares @ (wide * b[None]) + total[:, None] * a[None]
    dx = _times_transposed(dy, kernel).astype(jnp.float32)
    mixing = _times_transposed(wide * b[None], wide)  # [C, C], symmetric
    dx += _times(x, mixing.astype(x.dtype)).astype(jnp.float32)
    dx += (wide @ a).reshape(1, 1, 1, -1)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


fast_product.defvjp(lambda *inputs: (plain_product(*inputs), inputs), _backward)


def _times(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _times_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (1,)), ((), ())))

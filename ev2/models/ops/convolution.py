"""Convolutions whose form and gradient suit the platform, chosen at lowering.

Accelerators use XLA's own convolution. On CPU three of its parts are many times slower
than necessary (measured in docs/results.md) and are replaced:

- a depthwise convolution, and its gradient by the input, by a sum of shifted products;
- the gradient of a depthwise convolution by its kernel: images are added up first, in
  one pass over the map that stays in cache, then pixels are summed;
- the gradient of a dense convolution by its kernel, by a matrix product for each kernel
  position.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Images added up in one expression, at most: the maps of more, whole pages apart, would
# evict each other from the cache.
_MAX_IMAGES_AT_ONCE = 8

Pads = tuple[tuple[int, int], tuple[int, int]]


def pads_of(shape: tuple[int, ...], kernel: int, stride: int, padding: str) -> Pads:
    """Returns the pixels to add above, below and left, right of `[N, H, W, C]`.

    Either padding gives ceil(H / stride) rows if the kernel is odd.
    """
    if padding == "symmetric":
        return (kernel // 2, kernel // 2), (kernel // 2, kernel // 2)
    sizes = (kernel, kernel), (stride, stride)
    rows, columns = lax.padtype_to_pads(shape[1:3], *sizes, "SAME")
    return rows, columns


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: str = "same"
) -> jax.Array:
    """Returns the convolution of `x` over all channels.

    Args:
        x: `[N, H, W, C]`.
        kernel: `[k, k, C, F]`, of the dtype of `x`.
        stride: px.
        padding: one of `arch.PADDINGS`.

    Returns:
        `[N, ceil(H / stride), ceil(W / stride), F]`, of the dtype of `x`.
    """
    if len(kernel) > 1:
        return _spatial_conv(x, kernel, stride=stride, padding=padding)
    # A product over channels: same value, faster gradient on CPU.
    if stride > 1:
        x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


@functools.partial(jax.jit, static_argnames=("stride", "padding"))  # one trace a shape
def _spatial_conv(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: str
) -> jax.Array:
    return _conv(x, kernel, stride, pads_of(x.shape, len(kernel), stride, padding))


@functools.partial(jax.jit, static_argnames=("stride", "padding"))
def depthwise_conv(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: str = "same"
) -> jax.Array:
    """Convolves as `conv` channel by channel: kernel `[k, k, 1, C]`, C channels out."""
    pads = pads_of(x.shape, len(kernel), stride, padding)
    return _depthwise_conv(x, kernel, stride, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    return _by_xla(x, kernel, stride=stride, pads=pads)


def _conv_backward(stride: int, pads: Pads, saved: Any, dy: jax.Array):
    x, kernel = saved
    plain_conv = functools.partial(_by_xla, stride=stride, pads=pads)
    (dx,) = jax.linear_transpose(lambda x: plain_conv(x, kernel), x)(dy)

    def plain(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda kernel: plain_conv(x, kernel), kernel)(dy)[0]

    def products(x: jax.Array, dy: jax.Array) -> jax.Array:
        return _dense_kernel_gradient(x, dy, len(kernel), stride, pads)

    return dx, lax.platform_dependent(x, dy, cpu=products, default=plain)


_conv.defvjp(lambda *inputs: (_conv(*inputs), inputs[:2]), _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> jax.Array:
    shifted = functools.partial(_shifted_products, stride=stride, pads=pads)
    grouped = functools.partial(_by_xla, stride=stride, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


def _depthwise_backward(stride: int, pads: Pads, saved: Any, dy: jax.Array):
    grouped = functools.partial(_by_xla, stride=stride, pads=pads)

    def plain(x: jax.Array, kernel: jax.Array, dy: jax.Array):
        return jax.vjp(grouped, x, kernel)[1](dy)

    def shifted(x: jax.Array, kernel: jax.Array, dy: jax.Array):
        dx = _depthwise_input_gradient(x.shape, kernel, dy, stride, pads)
        dkernel = _depthwise_kernel_gradient(x, dy, len(kernel), stride, pads)
        return dx, dkernel

    return lax.platform_dependent(*saved, dy, cpu=shifted, default=plain)


_depthwise_conv.defvjp(
    lambda *inputs: (_depthwise_conv(*inputs), inputs[:2]), _depthwise_backward
)


def _by_xla(
    x: jax.Array, kernel: jax.Array, *, stride: int, pads: Sequence | str
) -> jax.Array:
    """Convolves by XLA's operation; depthwise if the kernel has one input channel."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _shifted_products(
    x: jax.Array, kernel: jax.Array, *, stride: int, pads: Sequence
) -> jax.Array:
    """Sums a strided view of the padded input per kernel position, in float32."""
    dtype = x.dtype
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = ((size - len(kernel)) // stride + 1 for size in x.shape[1:3])
    total = jnp.zeros((x.shape[0], rows, columns, x.shape[-1]), jnp.float32)
    for i, j in _positions(len(kernel)):
        view = _view(x, i, j, rows, columns, stride)
        total = total + view * kernel[i, j].reshape(1, 1, 1, -1)
    return total.astype(dtype)


def _positions(side: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(side) for j in range(side)]


def _view(
    x: jax.Array, i: int, j: int, rows: int, columns: int, stride: int
) -> jax.Array:
    """Returns the pixels of the padded `x` under kernel position (i, j)."""
    # lax.slice, for indexing becomes a gather where the batch is symbolic.
    last = (i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1)
    limits = (x.shape[0], *last, x.shape[3])
    return lax.slice(x, (0, i, j, 0), limits, (1, stride, stride, 1))


def _depthwise_input_gradient(
    shape: tuple[int, ...], kernel: jax.Array, dy: jax.Array, stride: int, pads: Pads
) -> jax.Array:
    """Convolves `dy`, dilated by the stride, with the reversed kernel."""
    side, config = len(kernel), [(0, 0, 0)]
    for size, outputs, (before, _) in zip(shape[1:3], dy.shape[1:3], pads, strict=True):
        low = side - 1 - before
        high = size + side - 1 - low - ((outputs - 1) * stride + 1)
        config.append((low, high, stride - 1))
    dilated = lax.pad(dy, jnp.zeros((), dy.dtype), [*config, (0, 0, 0)])
    return _shifted_products(
        dilated, kernel[::-1, ::-1], stride=1, pads=((0, 0), (0, 0))
    )


def _depthwise_kernel_gradient(
    x: jax.Array, dy: jax.Array, side: int, stride: int, pads: Pads
) -> jax.Array:
    """Sums over images in one pass for all kernel positions, then over pixels."""
    x, dtype = x.astype(jnp.float32), x.dtype
    dy, zero = dy.astype(jnp.float32), jnp.zeros((), jnp.float32)
    # XLA would fuse the producer of dy into every reading of it, but not into a pad.
    dy = lax.pad(dy, zero, [(0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 0)])
    rows, columns = dy.shape[1:3]
    # [N, rows + r, stride, columns + r, stride, C]: then a view has no stride.
    reach = (side - 1) // stride
    sizes = [(count + reach) * stride for count in (rows, columns)]
    fit = [
        (before, size - count - before, 0)
        for size, count, (before, _) in zip(sizes, x.shape[1:3], pads, strict=True)
    ]
    x = lax.pad(x, zero, [(0, 0, 0), *fit, (0, 0, 0)])
    x = x.reshape(len(x), rows + reach, stride, columns + reach, stride, -1)
    at_once = _images_at_once(len(dy))
    groups = (len(dy) // at_once, at_once)
    dy = dy.reshape(*groups, *dy.shape[1:])
    sums = []
    for i, j in _positions(side):
        (a, p), (b, q) = divmod(i, stride), divmod(j, stride)
        view = x[:, a : a + rows, p, b : b + columns, q].reshape(dy.shape)
        sums.append(sum(view[:, n] * dy[:, n] for n in range(at_once)))
    sums = lax.optimization_barrier(jnp.stack(sums))  # [k * k, groups, H, W, C]
    return jnp.sum(sums, (1, 2, 3)).reshape(side, side, 1, -1).astype(dtype)


def _images_at_once(images: int) -> int:
    """Returns the number of neighbouring images that one expression adds up.

    The largest divisor that leaves each device whole groups: a sum over images of
    several devices would move the maps between them.
    """
    divisors = [n for n in range(1, _MAX_IMAGES_AT_ONCE + 1) if images % n == 0]
    even = [n for n in divisors if images // n % jax.device_count() == 0]
    return max(even or divisors)


def _dense_kernel_gradient(
    x: jax.Array, dy: jax.Array, side: int, stride: int, pads: Pads
) -> jax.Array:
    """Computes a product over pixels for each kernel position, in float32."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    (rows, columns), pixels = dy.shape[1:3], dy.reshape(-1, dy.shape[-1])
    products = [
        lax.dot_general(
            _view(x, i, j, rows, columns, stride).reshape(-1, x.shape[-1]),
            pixels,
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        for i, j in _positions(side)
    ]
    kernel = jnp.stack(products).reshape(side, side, x.shape[-1], -1)
    return kernel.astype(dy.dtype)

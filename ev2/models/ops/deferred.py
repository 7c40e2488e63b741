"""A normalized and activated map that the 1x1 convolution after it computes.

The map `a = activation(z)`, `z = (x - mean) * gain + bias`, is the widest of a block.
A training step on TPU is bound by memory, so there the map is never written: each of
its readers computes it from `x` again, and so does the gradient.

- Squeeze-and-excite reads it twice: for its mean, which makes the gate, and for the
  product with the gate. The gradient of the mean by mean, gain and bias depends on `z`
  alone and is computed in the forward pass.
- The gradient of the convolution by mean, gain and bias is sums over pixels, and the
  gradient by `x` depends on these sums, because mean and gain are computed from `x`.
  The narrow product's backward convolution is computed twice, once for the sums and
  once for the gradient, instead of writing a wide map, reading it, and writing another.

Other platforms use the plain form: on CPU arithmetic costs more than memory traffic.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Activation = Callable[[jax.Array], jax.Array]
_PIXELS = (0, 1, 2)  # of [N, H, W, C]


class Affine(NamedTuple):
    """The normalization `(x - mean) * gain + bias`, in float32."""

    mean: jax.Array  # [1 or N, 1, 1, C]
    gain: jax.Array  # [1 or N, 1, 1, C]
    bias: jax.Array  # [1, 1, 1, C]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x`, `[N, H, W, C]` of any float dtype, normalized; float32."""
        return (x.astype(jnp.float32) - self.mean) * self.gain + self.bias


@dataclasses.dataclass(frozen=True)
class Deferred:
    """`activation(affine(x)) * gate`, not yet computed.

    Attributes:
        activation: elementwise function.
        x: `[N, H, W, C]`, in the compute dtype.
        affine: the normalization of `x`.
        gate: `[N, 1, 1, C]`, or None for 1.
    """

    activation: Activation
    x: jax.Array
    affine: Affine
    gate: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the map."""
        return self.x.shape

    def project(self, kernel: jax.Array) -> jax.Array:
        """Returns the 1x1 convolution by `kernel`, `[C, F]`, as `[N, H, W, F]`."""
        return project(self.activation, self.x, self.affine, self.gate, kernel)


def pixel_mean(x: jax.Array | Deferred) -> jax.Array:
    """Returns the mean over pixels of a map without gate, `[N, 1, 1, C]` float32."""
    if isinstance(x, Deferred):
        return squeeze(x.activation, x.x, x.affine)
    return jnp.mean(x, (1, 2), jnp.float32, keepdims=True)


def multiply(x: jax.Array | Deferred, gate: jax.Array) -> jax.Array | Deferred:
    """Returns a map without gate times `gate`, `[N, 1, 1, C]`."""
    return dataclasses.replace(x, gate=gate) if isinstance(x, Deferred) else x * gate


@functools.partial(jax.jit, static_argnums=0)  # one trace a shape
def squeeze(activation: Activation, x: jax.Array, affine: Affine) -> jax.Array:
    """`pixel_mean` of a `Deferred`; the form is chosen at lowering."""
    fast = functools.partial(fast_squeeze, activation)
    plain = functools.partial(plain_squeeze, activation)
    return lax.platform_dependent(x, affine, tpu=fast, default=plain)


@functools.partial(jax.jit, static_argnums=0)
def project(activation: Activation, *inputs: Any) -> jax.Array:
    """`Deferred.project`; the form is chosen at lowering."""
    fast = functools.partial(fast_project, activation)
    plain = functools.partial(plain_project, activation)
    return lax.platform_dependent(*inputs, tpu=fast, default=plain)


def plain_squeeze(activation: Activation, x: jax.Array, affine: Affine) -> jax.Array:
    """Returns the mean in the plain form."""
    y = activation(affine(x).astype(x.dtype))
    return jnp.mean(y, axis=(1, 2), keepdims=True, dtype=jnp.float32)


def plain_project(
    activation: Activation,
    x: jax.Array,
    affine: Affine,
    gate: jax.Array | None,
    kernel: jax.Array,
) -> jax.Array:
    """Returns the product in the plain form."""
    y = activation(affine(x).astype(x.dtype))
    return _product(y if gate is None else y * gate.astype(y.dtype), kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fast_squeeze(activation: Activation, x: jax.Array, affine: Affine) -> jax.Array:
    """`plain_squeeze` in float32 throughout."""
    return _squeeze_forward(activation, x, affine)[0]


def _squeeze_forward(activation: Activation, x: jax.Array, affine: Affine):
    # Without the barrier XLA would compute the map once for squeeze and product, and
    # so write it and read it back.
    x = lax.optimization_barrier(x)
    y, slope = _value_and_slope(activation, x, affine)
    sums = _pixel_sums(y, slope, x, affine)
    mean, slopes, moments = (v / (x.shape[1] * x.shape[2]) for v in sums)
    return mean, (x, affine, slopes, moments)


def _squeeze_backward(activation: Activation, saved: Any, dy: jax.Array):
    x, affine, slopes, moments = saved
    _, slope = _value_and_slope(activation, x, affine)
    dx = dy / (x.shape[1] * x.shape[2]) * slope * affine.gain
    return dx.astype(x.dtype), _affine_gradient(affine, dy * slopes, dy * moments)


fast_squeeze.defvjp(_squeeze_forward, _squeeze_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fast_project(
    activation: Activation,
    x: jax.Array,
    affine: Affine,
    gate: jax.Array | None,
    kernel: jax.Array,
) -> jax.Array:
    """`plain_project` with the map in float32 up to its rounding at the end."""
    y = activation(affine(x)) * _factor(gate)
    return _product(y.astype(x.dtype), kernel)


def _project_backward(activation: Activation, saved: Any, dy: jax.Array):
    x, affine, gate, kernel = saved
    x = lax.optimization_barrier(x)
    factor = _factor(gate)
    y, slope = _value_and_slope(activation, x, affine)
    gated = (y * factor).astype(x.dtype)
    dkernel = lax.dot_general(gated, dy, ((_PIXELS, _PIXELS), ((), ())))
    # Per image, and the gate only afterwards: XLA computes sums of one shape in the
    # pass that makes their summands, and sums of other shapes in further passes.
    dgated = _product_by_transposed(dy, kernel).astype(jnp.float32)
    dgate, slopes, moments = _pixel_sums(dgated * y, dgated * slope, x, affine)
    daffine = _affine_gradient(affine, slopes * factor, moments * factor)
    # The barrier keeps XLA from reusing the product above.
    dy = lax.optimization_barrier(dy)
    dgated = _product_by_transposed(dy, kernel).astype(jnp.float32)
    dx = (dgated * factor * slope * affine.gain).astype(x.dtype)
    dgate = None if gate is None else dgate.astype(gate.dtype)
    return dx, daffine, dgate, dkernel


fast_project.defvjp(
    lambda activation, *inputs: (fast_project(activation, *inputs), inputs),
    _project_backward,
)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


def _product_by_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((3,), (1,)), ((), ())))


def _factor(gate: jax.Array | None) -> jax.Array | float:
    return 1.0 if gate is None else gate.astype(jnp.float32)


def _value_and_slope(
    activation: Activation, x: jax.Array, affine: Affine
) -> tuple[jax.Array, jax.Array]:
    """Returns the map and its derivative by `z`, float32."""
    z = affine(x)
    return jax.jvp(activation, (z,), (jnp.ones_like(z),))


def _pixel_sums(
    value: jax.Array, slope: jax.Array, x: jax.Array, affine: Affine
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns pixel sums, `[N, 1, 1, C]`, of value, slope and slope * (x - mean)."""
    sums = functools.partial(jnp.sum, axis=(1, 2), keepdims=True)
    centred = x.astype(jnp.float32) - affine.mean
    return sums(value), sums(slope), sums(slope * centred)


def _affine_gradient(affine: Affine, slopes: jax.Array, moments: jax.Array) -> Affine:
    """Returns the gradient of the affine map, from its sums per image."""
    gradient = Affine(mean=-slopes * affine.gain, gain=moments, bias=slopes)
    return Affine(*map(_sum_to, gradient, affine))


def _sum_to(per_image: jax.Array, like: jax.Array) -> jax.Array:
    """Sums over images if `like` has one row for all of them."""
    if len(like) == len(per_image):
        return per_image
    return jnp.sum(per_image, axis=0, keepdims=True)

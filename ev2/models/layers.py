"""The layers every network here is made of.

Decisions:
- padding is TensorFlow's SAME, or PyTorch's for weights that were trained with it;
- convolutions pick their form by platform, see `convolution.py`;
- parameters and statistics are float32, `dtype` is the compute dtype;
- a dropped unit or path is decided in float32, at a rate that may be traced.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ev2.models.ops import convolution, deferred, moments


def draw_kernels(rng: jax.Array, params: Any) -> Any:
    """Returns `params` with every kernel drawn at random.

    A fresh module holds in each kernel the spread its law is to have; here it is
    multiplied by draws of unit spread: normal for convolutions (rank 4), uniform on
    [-1, 1) for a dense layer (rank 2). Biases and scales stay as they are.

    One draw serves all convolutions, because XLA on CPU takes long to compile each.

    Source: released code, effnetv2_model.py.
    """
    conv_rng, dense_rng = jax.random.split(rng)
    leaves, tree = jax.tree.flatten(params)
    sizes = [leaf.size if leaf.ndim == 4 else 0 for leaf in leaves]
    ends = itertools.accumulate(sizes)
    normal = jax.random.normal(conv_rng, (sum(sizes),), jnp.float32)
    for i, (leaf, size, end) in enumerate(zip(leaves, sizes, ends, strict=True)):
        if leaf.ndim == 4:
            leaves[i] = leaf * normal[end - size : end].reshape(leaf.shape)
        elif leaf.ndim == 2:
            uniform = jax.random.uniform(dense_rng, leaf.shape, minval=-1.0, maxval=1.0)
            leaves[i] = leaf * uniform
    return jax.tree.unflatten(tree, leaves)


def _spread(deviation: float) -> nn.initializers.Initializer:
    return nn.initializers.constant(deviation, jnp.float32)


class Conv(nn.Module):
    """Convolution: `[N, H, W, C]` to `[N, H/stride, W/stride, F]`.

    H / stride is rounded up.

    Attributes:
        features: output channels F.
        kernel: side of the kernel in pixels.
        stride: in pixels.
        use_bias: whether to add a bias, initialized to zero.
        padding: one of `arch.PADDINGS`.
        dtype: compute dtype, also of the result.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    use_bias: bool = False
    padding: str = "same"
    dtype: Any = jnp.float32

    def __call__(self, x: jax.Array | deferred.Deferred) -> jax.Array:
        return self._convolve(x)

    def with_moments(self, x: jax.Array) -> moments.Product:
        """Returns the result with its mean and mean square; for 1x1 convolutions."""
        return self._convolve(x, with_moments=True)

    @nn.compact
    def _convolve(
        self, x: jax.Array | deferred.Deferred, *, with_moments: bool = False
    ) -> Any:
        in_channels = (x.x if isinstance(x, deferred.Deferred) else x).shape[-1]
        shape = (self.kernel, self.kernel, in_channels, self.features)
        fan_out = self.kernel * self.kernel * self.features
        kernel = self.param("kernel", _spread((2 / fan_out) ** 0.5), shape)
        kernel = kernel.astype(self.dtype)
        if with_moments or isinstance(x, deferred.Deferred):
            assert self.kernel == self.stride == 1 and not self.use_bias
        if isinstance(x, deferred.Deferred):
            return x.project(kernel[0, 0])
        x = x.astype(self.dtype)
        if with_moments:
            return moments.product(x, kernel[0, 0])
        if self.kernel == 1:
            y = convolution.pointwise_conv(x, kernel, stride=self.stride)
        else:
            y = convolution.conv(x, kernel, stride=self.stride, padding=self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


class DepthwiseConv(nn.Module):
    """Convolution of each channel with its own kernel.

    Attributes:
        kernel: side of the kernel in pixels.
        stride: in pixels.
        padding: one of `arch.PADDINGS`.
        dtype: compute dtype, also of the result.
    """

    kernel: int
    stride: int = 1
    padding: str = "same"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        # fan_out of the released code: the last axis of TensorFlow's kernel is 1.
        fan_out = self.kernel * self.kernel
        kernel = self.param("kernel", _spread((2 / fan_out) ** 0.5), shape)
        return convolution.depthwise_conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
        )


class ConvNorm(nn.Module):
    """Convolution, batch normalization and, unless None, an activation.

    Attributes:
        conv: makes the convolution from `name`, all else bound.
        norm: makes the normalization from `name`, all else bound.
        activation: applied last.
        defer: whether to return, in training, a `deferred.Deferred`, which leaves
            normalization and activation to the 1x1 convolution that comes next.
        widens: whether the convolution is 1x1 with more features than channels.
    """

    conv: Any
    norm: Any
    activation: Any = None
    defer: bool = False
    widens: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Any:
        conv, norm, known = self.conv(name="conv"), self.norm(name="norm"), None
        if self.widens and train and norm.group_images in (0, len(x)):
            x, *known = conv.with_moments(x)
        else:
            x = conv(x)
        affine = norm.affine(x, train=train, moments=known)
        if self.defer and train:
            return deferred.Deferred(self.activation, x, affine)
        x = affine(x).astype(norm.dtype)
        return x if self.activation is None else self.activation(x)


ACTIVATIONS = {"silu": nn.silu, "relu6": nn.relu6, "relu": nn.relu}


class SqueezeExcite(nn.Module):
    """Rescales channels by what the whole picture says: pool, 1x1, SiLU, 1x1, sigmoid.

    Attributes:
        channels: width between the two 1x1 convolutions. Both have biases.
        conv: makes a convolution from its features; dtype bound.
    """

    channels: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array | deferred.Deferred) -> Any:
        if isinstance(x, deferred.Deferred):
            return dataclasses.replace(x, gate=self._gate(x.squeeze()))
        return x * self._gate(jnp.mean(x, (1, 2), jnp.float32, keepdims=True))

    def _gate(self, s: jax.Array) -> jax.Array:
        """From the mean over pixels to the factors, both `[N, 1, 1, C]`."""
        channels = s.shape[-1]
        s = nn.silu(self.conv(self.channels, use_bias=True, name="reduce")(s))
        return nn.sigmoid(self.conv(channels, use_bias=True, name="expand")(s))


class Classifier(nn.Module):
    """Global pool, dropout, dense layer: `[N, H, W, C]` to logits `[N, num_classes]`.

    All in float32. With `num_classes` 0 the pooled features `[N, C]` come out and
    there are no parameters.

    The kernel starts uniform on +-1/sqrt(num_classes), the bias at zero, as in the
    released code.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: jax.Array, *, dropout: jax.Array | float, rng: jax.Array | None
    ) -> jax.Array:
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)  # [N, C]
        if not self.num_classes:
            return x
        if rng is not None:
            x = drop(x, dropout, rng, mask_shape=x.shape)
        shape = (x.shape[-1], self.num_classes)
        kernel = self.param("kernel", _spread(self.num_classes**-0.5), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return x @ kernel + bias.reshape(1, -1)


def drop(
    x: jax.Array,
    rate: jax.Array | float,
    rng: jax.Array,
    *,
    mask_shape: tuple[int, ...],
) -> jax.Array:
    """Zeroes parts of `x` at random and scales the rest so that the mean stays.

    Dropout with `mask_shape` the shape of `x`; stochastic depth ("drop path") with
    `[N, 1, 1, 1]`. The draw covers the global batch and is the same on any number of
    devices.

    Args:
        x: any shape and float dtype.
        rate: probability of a zero, in [0, 1), traced or not. 0 returns the values of
            `x` exactly.
        rng: key.
        mask_shape: shape of the draw, broadcast to that of `x`.

    Differs: the released code draws in the compute dtype, whose steps of 2^-7 in
    bfloat16 shift the rate; here draw and scale are float32.
    """
    survival = 1.0 - jnp.asarray(rate, jnp.float32)
    # Uniform draws are below 1, so that survival 1 keeps everything.
    keep = jax.random.uniform(rng, mask_shape, jnp.float32) < survival
    factor = jnp.where(keep, 1.0 / survival, 0.0)
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


def drop_path_at(
    index: int,
    num_blocks: int,
    *,
    rate: jax.Array | float,
    rng: jax.Array | None,
) -> Callable[[jax.Array], jax.Array]:
    """Returns the stochastic depth of block `index`: a function of its branch.

    Whole images lose the branch, with probability `rate * index / num_blocks`: none
    in the first block, nearly `rate` in the last. Without `rng`, the identity.

    Source: released code (effnetv2_model.py, utils.drop_connect); the paper gives
    only the end of the ramp, survival 0.8.
    """
    if rng is None:
        return lambda x: x
    block_rng, block_rate = jax.random.fold_in(rng, index), rate * index / num_blocks

    def drop_path(x: jax.Array) -> jax.Array:
        return drop(x, block_rate, block_rng, mask_shape=(len(x), 1, 1, 1))

    return drop_path

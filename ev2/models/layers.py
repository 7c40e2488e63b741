"""The layers every network here is made of.

Decisions:
- padding is TensorFlow's SAME: an odd pixel goes to the bottom and the right;
- 1x1 convolutions are matrix products, and a depthwise convolution picks its
  lowering by platform, both for speed on CPU;
- parameters and statistics are float32, `dtype` is the compute dtype;
- a dropped unit or path is decided in float32, at a rate that may be traced.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ev2 import errors

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def draw_kernels(rng: jax.Array, params: Any) -> Any:
    """Returns `params` with every kernel drawn at random.

    A fresh module holds in each kernel the spread its law is to have; here it is
    multiplied by draws of unit spread: normal for convolutions (rank 4), uniform on
    [-1, 1) for a dense layer (rank 2). Biases and scales stay as they are.

    One draw serves all convolutions, because XLA takes half a second on CPU to compile
    each (2 s in place of 17 s for the tiny network, 12 s in place of 50 s for S).

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
    """Convolution with SAME padding: `[N, H, W, C]` to `[N, H/stride, W/stride, F]`.

    H / stride is rounded up.

    Attributes:
        features: output channels F.
        kernel: side of the kernel in pixels.
        stride: in pixels.
        use_bias: whether to add a bias, initialized to zero.
        dtype: compute dtype, also of the result.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        fan_out = self.kernel * self.kernel * self.features
        kernel = self.param("kernel", _spread((2 / fan_out) ** 0.5), shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.kernel == 1:
            x = _pointwise_conv(x, kernel, stride=self.stride)
        else:
            strides = (self.stride, self.stride)
            x = lax.conv_general_dilated(
                x, kernel, strides, "SAME", dimension_numbers=_DIMENSIONS
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


def _pointwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """1x1 convolution as a product over channels.

    Same value as XLA's convolution. On 2 CPU cores the gradient at
    64x14x14x64 -> 24 takes 3.0 ms, not 7.0.
    """
    if stride > 1:
        x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


class DepthwiseConv(nn.Module):
    """Convolution of each channel with its own kernel, SAME padding.

    Attributes:
        kernel: side of the kernel in pixels.
        stride: in pixels.
        dtype: compute dtype, also of the result.
    """

    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        # fan_out of the released code: the last axis of TensorFlow's kernel is 1.
        fan_out = self.kernel * self.kernel
        kernel = self.param("kernel", _spread((2 / fan_out) ** 0.5), shape)
        kernel = kernel.astype(self.dtype)
        return depthwise_conv(x.astype(self.dtype), kernel, stride=self.stride)


@functools.partial(jax.jit, static_argnames="stride")  # traced once per shape
def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """Returns `x` convolved channel by channel, SAME padding.

    One function, two lowerings. XLA's grouped convolution is what an accelerator
    wants, and is slow on CPU: with 16x16x16x256 in float32 on 2 cores it takes
    59 ms (113 ms with gradients), the sum of shifted products 0.8 ms (19 ms).

    Args:
        x: `[N, H, W, C]`.
        kernel: `[k, k, 1, C]`, of the dtype of `x`.
        stride: in pixels.

    Returns:
        `[N, H/stride, W/stride, C]`, rounded up, of the dtype of `x`.
    """

    def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _shifted_products(x, kernel, stride=stride)

    def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _grouped_conv(x, kernel, stride=stride)

    return lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


def _grouped_conv(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=_DIMENSIONS,
        feature_group_count=x.shape[-1],
    )


def _shifted_products(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """One strided view of the padded input per kernel position; sums in float32."""
    side, dtype = kernel.shape[0], x.dtype
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    pads = lax.padtype_to_pads(x.shape[1:3], (side, side), (stride, stride), "SAME")
    rows, columns = (-(-size // stride) for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    total = jnp.zeros((x.shape[0], rows, columns, x.shape[-1]), jnp.float32)
    for i in range(side):
        for j in range(side):
            # [N, rows, columns, C]: the pixels that kernel position (i, j) meets.
            # lax.slice, for indexing becomes a gather where the batch is symbolic.
            last = (i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1)
            limits = (x.shape[0], *last, x.shape[3])
            view = lax.slice(x, (0, i, j, 0), limits, (1, stride, stride, 1))
            total = total + view * kernel[i, j].reshape(1, 1, 1, -1)
    return total.astype(dtype)


class BatchNorm(nn.Module):
    """Batch normalization over the global batch, or over fixed groups of images.

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`, in float32. The running
    mean and (biased) variance move by `1 - momentum` towards those of the batch,
    averaged over the groups.

    Statistics are a matter of images, not of devices: under a global-view jit the
    result does not depend on how the batch is sharded.

    Attributes:
        momentum: share of the running statistics kept at each step, in [0, 1).
        epsilon: added to the variance.
        group_images: consecutive images that share statistics; 0 for all.
        dtype: dtype of the result.
        scale_init: initializer of the scale.

    Raises:
        InputError: in training, if `group_images` does not divide the batch.

    Differs: the released code averages the statistics of up to 8 neighbouring
    cores, so that its groups change with the batch per core; here they are named.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    group_images: int = 0
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        running_mean = self.variable("batch_stats", "mean", zeros, None, channels)
        running_var = self.variable("batch_stats", "var", ones, None, channels)

        x = x.astype(jnp.float32)
        mean, var = running_mean.value[None], running_var.value[None]  # [1, C]
        if train:
            mean, var = self._moments(x)  # [groups, C]
            self._update(running_mean, mean)
            self._update(running_var, var)
            mean, var = _per_image(mean, len(x)), _per_image(var, len(x))
        gain = lax.rsqrt(var + self.epsilon) * scale[None]
        # [1 or N, C] -> [1 or N, 1, 1, C]
        mean, gain = mean[:, None, None], gain[:, None, None]
        y = (x - mean) * gain + bias.reshape(1, 1, 1, -1)
        return y.astype(self.dtype)

    def _moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each group, `[groups, C]`.

        One pass over `x`: both moments per image, then averaged within groups, which
        is exact because all images of a batch have the same size.
        """
        group_images = self.group_images or len(x)
        if len(x) % group_images:
            raise errors.InputError(
                f"model.bn_group_images: {group_images} does not divide the batch of "
                f"{len(x)} images; use a divisor of every stage's batch, or 0 for all"
            )

        def group_means(values: jax.Array) -> jax.Array:
            per_image = jnp.mean(values, axis=(1, 2))  # [N, C]
            grouped = per_image.reshape(-1, group_images, x.shape[-1])
            return jnp.mean(grouped, axis=1)

        mean = group_means(x)
        # Rounding may leave a constant channel a hair below zero.
        var = jnp.maximum(group_means(jnp.square(x)) - jnp.square(mean), 0.0)
        return mean, var

    def _update(self, running: nn.Variable, batch: jax.Array) -> None:
        if not self.is_initializing():
            batch = jnp.mean(batch, axis=0)
            running.value = self.momentum * running.value + (1 - self.momentum) * batch


def _per_image(groups: jax.Array, num_images: int) -> jax.Array:
    """`[groups, C]` to `[N, C]`, or to `[1, C]` where one group is all there is."""
    if len(groups) == 1:
        return groups
    return jnp.repeat(groups, num_images // len(groups), axis=0)


class ConvNorm(nn.Module):
    """Convolution, batch normalization and, unless None, an activation.

    Attributes:
        conv: makes the convolution from `name`, all else bound.
        norm: makes the normalization from `name`, all else bound.
        activation: applied last.
    """

    conv: Any
    norm: Any
    activation: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.norm(name="norm")(self.conv(name="conv")(x), train=train)
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(nn.Module):
    """Rescales channels by what the whole picture says: pool, 1x1, SiLU, 1x1, sigmoid.

    Attributes:
        channels: width between the two 1x1 convolutions. Both have biases.
        conv: makes a convolution from its features; dtype bound.
    """

    channels: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)  # [N, 1, 1, C]
        s = nn.silu(self.conv(self.channels, use_bias=True, name="reduce")(s))
        s = nn.sigmoid(self.conv(x.shape[-1], use_bias=True, name="expand")(s))
        return x * s


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

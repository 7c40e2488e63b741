"""Layers of every network: convolution, squeeze-and-excite, dropout, classifier.

Parameters and statistics are float32; layers compute in `LayerOptions.dtype`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ev2.models import batch_norm
from ev2.models.ops import convolution, deferred, moments

ACTIVATIONS = {"silu": nn.silu, "relu6": nn.relu6, "relu": nn.relu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Options that all layers of a network share.

    Attributes:
        dtype: compute dtype.
        padding: one of `arch.PADDINGS`.
        activation: one of `ACTIVATIONS`.
        bn_momentum, bn_epsilon, bn_group_images, bn_frozen: see `batch_norm.BatchNorm`.
    """

    dtype: Any = jnp.float32
    padding: str = "same"
    activation: str = "silu"
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_group_images: int = 0
    bn_frozen: bool = False


def _constant(value: float) -> nn.initializers.Initializer:
    """Fills a kernel with its standard deviation, for `model.draw_kernels`."""
    return nn.initializers.constant(value, jnp.float32)


class Conv(nn.Module):
    """Convolution: `[N, H, W, C]` to `[N, ceil(H / stride), ceil(W / stride), F]`.

    Attributes:
        options: shared by all layers.
        features: output channels F; C if depthwise.
        kernel: side of the kernel, px.
        stride: px.
        depthwise: gives each channel a kernel of its own.
        use_bias: adds a bias, initialized to zero.
    """

    options: LayerOptions
    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array | deferred.Deferred, *, with_moments: bool = False
    ) -> Any:
        """Returns the map, or `moments.Product` if `with_moments` (1x1, no bias)."""
        # The released code takes fan_out of TensorFlow's depthwise kernel [k, k, C, 1].
        inputs, outputs = (1, 1) if self.depthwise else (x.shape[-1], self.features)
        deviation = (2 / (self.kernel**2 * outputs)) ** 0.5
        shape = (self.kernel, self.kernel, inputs, self.features)
        kernel = self.param("kernel", _constant(deviation), shape)
        kernel = kernel.astype(self.options.dtype)
        if with_moments or isinstance(x, deferred.Deferred):
            assert self.kernel == self.stride == 1 and not self.use_bias
        if isinstance(x, deferred.Deferred):
            return x.project(kernel[0, 0])
        x = x.astype(self.options.dtype)
        if with_moments:
            return moments.product(x, kernel[0, 0])
        conv = convolution.depthwise_conv if self.depthwise else convolution.conv
        y = conv(x, kernel, stride=self.stride, padding=self.options.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(y.dtype).reshape(1, 1, 1, -1)
        return y


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalization, activation.

    Attributes:
        options, features, kernel, stride, depthwise: see `Conv`.
        activate: ends with the activation.
        zero_init: see `batch_norm.BatchNorm`.
        tpu_form: training form of equal value that moves less memory on TPU, for the
            wide maps inside a block. "moments": a 1x1 convolution whose gradient does
            not read its output, see `ops.moments`. "deferred": the 1x1 convolution
            that follows normalizes and activates, see `ops.deferred`.
    """

    options: LayerOptions
    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    activate: bool = True
    zero_init: bool = False
    tpu_form: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Any:
        """Returns `[N, H, W, F]`; a `deferred.Deferred` of it in that training form."""
        options, batch_moments = self.options, None
        sizes = (self.features, self.kernel, self.stride, self.depthwise)
        conv = Conv(options, *sizes, name="conv")
        one_group = options.bn_group_images in (0, x.shape[0])
        if self.tpu_form == "moments" and train and one_group:
            x, *batch_moments = conv(x, with_moments=True)
        else:
            x = conv(x)
        norm = batch_norm.BatchNorm(
            momentum=options.bn_momentum,
            epsilon=options.bn_epsilon,
            group_images=options.bn_group_images,
            frozen=options.bn_frozen,
            zero_init=self.zero_init,
            name="norm",
        )(x, train=train, moments=batch_moments)
        activation = ACTIVATIONS[options.activation]
        if self.tpu_form == "deferred" and train:
            return deferred.Deferred(activation, x, norm)
        x = norm(x).astype(options.dtype)
        return activation(x) if self.activate else x


class SqueezeExcite(nn.Module):
    """Gates channels by the whole image: mean, 1x1, SiLU, 1x1, sigmoid, product.

    Attributes:
        options: shared by all layers.
        channels: width between the two 1x1 convolutions, which have biases.
    """

    options: LayerOptions
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array | deferred.Deferred) -> Any:
        """Returns `x` times a gate in (0, 1) per image and channel."""
        s = deferred.pixel_mean(x)  # [N, 1, 1, C]
        s = Conv(self.options, self.channels, use_bias=True, name="reduce")(s)
        s = Conv(self.options, x.shape[-1], use_bias=True, name="expand")(nn.silu(s))
        return deferred.multiply(x, nn.sigmoid(s))


class Classifier(nn.Module):
    """Mean over pixels, dropout, dense layer, in float32.

    The kernel starts uniform on +-1/sqrt(num_classes), the bias at zero, as in the
    released code.

    Attributes:
        num_classes: number of logits; 0 returns the pooled features.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: jax.Array, *, dropout: jax.Array | float, rng: jax.Array | None
    ) -> jax.Array:
        """Returns logits `[N, num_classes]` or features `[N, C]` of `[N, H, W, C]`."""
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        if not self.num_classes:
            return x
        if rng is not None:
            x = drop(x, dropout, rng, mask_shape=x.shape)
        shape = (x.shape[-1], self.num_classes)
        kernel = self.param("kernel", _constant(self.num_classes**-0.5), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return x @ kernel + bias.reshape(1, -1)


def drop(
    x: jax.Array, rate: jax.Array | float, rng: jax.Array, mask_shape: tuple[int, ...]
) -> jax.Array:
    """Zeroes parts of `x` at random and scales the rest so that the mean stays.

    The draw covers the global batch and is the same on any number of devices.

    Args:
        x: any shape and float dtype.
        rate: probability of a zero, in [0, 1), traced or not. 0 returns the values of
            `x` exactly.
        rng: key.
        mask_shape: shape of the draw, broadcast to the shape of `x`: equal to it for
            dropout, `[N, 1, 1, 1]` for stochastic depth ("drop path").

    Differs: the released code draws in the compute dtype, whose steps of 2^-7 in
    bfloat16 shift the rate; here draw and scale are float32.
    """
    survival = 1.0 - jnp.asarray(rate, jnp.float32)
    # Uniform draws are below 1, so that survival 1 keeps everything.
    keep = jax.random.uniform(rng, mask_shape, jnp.float32) < survival
    factor = jnp.where(keep, 1.0 / survival, 0.0)
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


def drop_path_at(
    index: int, num_blocks: int, rate: jax.Array | float, rng: jax.Array | None
) -> Callable[[jax.Array], jax.Array]:
    """Returns the stochastic depth of block `index`, a function of its branch.

    Whole images lose the branch with probability `rate * index / num_blocks`: none in
    the first block, nearly `rate` in the last. Without `rng`, the identity.

    Source: released code (effnetv2_model.py, utils.drop_connect); the paper gives only
    the end of the ramp, survival 0.8.
    """
    if rng is None:
        return lambda x: x
    block_rng, block_rate = jax.random.fold_in(rng, index), rate * index / num_blocks
    return lambda x: drop(x, block_rate, block_rng, mask_shape=(len(x), 1, 1, 1))

"""Batch normalization over images, whatever the devices they lie on."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ev2 import errors
from ev2.models.ops import deferred

Moments = tuple[jax.Array, jax.Array]


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
        frozen: whether to normalize by the running statistics in training too, and
            leave them as they are.

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
    frozen: bool = False

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns `[N, H, W, C]` normalized."""
        return self.affine(x, train=train)(x).astype(self.dtype)

    @nn.compact
    def affine(
        self, x: jax.Array, *, train: bool, moments: Moments | None = None
    ) -> deferred.Affine:
        """Returns the normalization of `x`; moves the running statistics.

        `moments`: mean of `x` and of its square over the whole batch, `[C]`, if they
        are known already, and all images are one group.
        """
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        running_mean = self.variable("batch_stats", "mean", zeros, None, channels)
        running_var = self.variable("batch_stats", "var", ones, None, channels)

        mean, var = running_mean.value[None], running_var.value[None]  # [1, C]
        if train and not self.frozen:
            mean, var = self._mean_and_var(x, moments)  # [groups, C]
            self._update(running_mean, mean)
            self._update(running_var, var)
            mean, var = _per_image(mean, len(x)), _per_image(var, len(x))
        gain = lax.rsqrt(var + self.epsilon) * scale[None]
        # [1 or N, C] -> [1 or N, 1, 1, C]
        mean, gain = mean[:, None, None], gain[:, None, None]
        return deferred.Affine(mean, gain, bias.reshape(1, 1, 1, -1))

    def _mean_and_var(
        self, x: jax.Array, moments: Moments | None
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each group, `[groups, C]`, in one pass over `x`."""
        group_images = self.group_images or len(x)
        if len(x) % group_images:
            raise errors.InputError(
                f"model.bn_group_images: {group_images} does not divide the batch of "
                f"{len(x)} images; use a divisor of every stage's batch, or 0 for all"
            )
        if moments is not None:
            mean, square = moments[0][None], moments[1][None]
        else:
            x = x.astype(jnp.float32)
            mean = _group_means(x, group_images)
            square = _group_means(jnp.square(x), group_images)
        # Rounding may leave a constant channel a hair below zero.
        return mean, jnp.maximum(square - jnp.square(mean), 0.0)

    def _update(self, running: nn.Variable, batch: jax.Array) -> None:
        if not self.is_initializing():
            batch = jnp.mean(batch, axis=0)
            running.value = self.momentum * running.value + (1 - self.momentum) * batch


def _group_means(x: jax.Array, group_images: int) -> jax.Array:
    """Means over the pixels of each group, `[groups, C]`.

    Groups are means of their images' means, which is exact because all images of a
    batch have the same size.
    """
    if group_images == len(x):
        return jnp.mean(x, axis=(0, 1, 2))[None]
    per_image = jnp.mean(x, axis=(1, 2))  # [N, C]
    return jnp.mean(per_image.reshape(-1, group_images, x.shape[-1]), axis=1)


def _per_image(groups: jax.Array, num_images: int) -> jax.Array:
    """`[groups, C]` to `[N, C]`, or to `[1, C]` where one group is all there is."""
    if len(groups) == 1:
        return groups
    return jnp.repeat(groups, num_images // len(groups), axis=0)

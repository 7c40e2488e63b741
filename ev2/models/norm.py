"""Batch normalization over images, whatever the devices they lie on."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ev2 import errors


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
        if train and not self.frozen:
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

"""Batch normalization whose statistics do not depend on the sharding of the batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ev2 import errors
from ev2.models.ops import deferred


class BatchNorm(nn.Module):
    """Batch normalization over the global batch, or over fixed groups of images.

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`, in float32. The running mean
    and (biased) variance move by `1 - momentum` towards the batch's, averaged over the
    groups. Under a global-view jit the result does not depend on how the batch is
    sharded.

    Attributes:
        momentum: fraction of the running statistics kept at each step, in [0, 1).
        epsilon: added to the variance.
        group_images: consecutive images that share statistics; 0 for all.
        zero_init: starts the scale at 0 instead of 1.
        frozen: normalizes by the running statistics in training, too, and leaves them
            unchanged.

    Raises:
        InputError: in training, `group_images` does not divide the batch.

    Differs: the released code averages the statistics of up to 8 neighbouring cores, so
    that its groups change with the batch per core; here they are fixed.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    group_images: int = 0
    zero_init: bool = False
    frozen: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, moments: Sequence[jax.Array] | None = None
    ) -> deferred.Affine:
        """Returns the normalization of `x` as a function; updates running statistics.

        Args:
            x: `[N, H, W, C]`.
            train: normalizes by the batch.
            moments: means of `x` and of its square over the batch, `[C]`, if they are
                known; only if all images are one group.
        """
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        channels = (x.shape[-1],)
        scale_init = zeros if self.zero_init else ones
        scale = self.param("scale", scale_init, channels, jnp.float32)
        bias = self.param("bias", zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", zeros, None, channels)
        running_var = self.variable("batch_stats", "var", ones, None, channels)

        mean, var = running_mean.value[None], running_var.value[None]  # [1, C]
        if train and not self.frozen:
            group_images = self._group_images(len(x))
            if moments is None:
                x = x.astype(jnp.float32)
                mean = _group_means(x, group_images)
                square = _group_means(jnp.square(x), group_images)
            else:
                mean, square = moments[0][None], moments[1][None]
            # Rounding may leave a constant channel slightly below zero.
            var = jnp.maximum(square - jnp.square(mean), 0.0)  # [groups, C]
            self._update(running_mean, mean)
            self._update(running_var, var)
            if len(mean) > 1:
                mean, var = (jnp.repeat(v, group_images, axis=0) for v in (mean, var))
        gain = lax.rsqrt(var + self.epsilon) * scale[None]
        # [1 or N, C] -> [1 or N, 1, 1, C]
        mean, gain = mean[:, None, None], gain[:, None, None]
        return deferred.Affine(mean, gain, bias.reshape(1, 1, 1, -1))

    def _group_images(self, num_images: int) -> int:
        group_images = self.group_images or num_images
        if num_images % group_images:
            raise errors.InputError(
                f"model.bn_group_images: {group_images} does not divide the batch of "
                f"{num_images} images; use a divisor of every stage's batch, or 0"
            )
        return group_images

    def _update(self, running: nn.Variable, batch: jax.Array) -> None:
        if not self.is_initializing():
            batch = jnp.mean(batch, axis=0)
            running.value = self.momentum * running.value + (1 - self.momentum) * batch


def _group_means(x: jax.Array, group_images: int) -> jax.Array:
    """Returns the mean over the pixels of each group, `[groups, C]`."""
    if group_images == len(x):
        return jnp.mean(x, axis=(0, 1, 2))[None]
    per_image = jnp.mean(x, axis=(1, 2))  # [N, C]; all have as many pixels
    return jnp.mean(per_image.reshape(-1, group_images, x.shape[-1]), axis=1)

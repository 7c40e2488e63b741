"""Mixup and CutMix on the device, inside the compiled step.

Partners are taken within fixed groups of consecutive images of the global batch, so
the result does not depend on how many devices share the batch, and no image travels
between devices as long as a device holds whole groups.
"""

import jax
import jax.numpy as jnp


def mix(
    rng: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    mixup: jax.Array,
    cutmix: jax.Array,
    group_images: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns `(images, targets)`, mixed with their partners.

    With both strengths above 0 the first half of every group gets mixup and the
    second half CutMix; otherwise the whole group gets the one that is on. The partner
    of an image is its mirror image within its half group. An image that could not
    be decoded (mask 0), and its partner, are left alone.

    Args:
      rng: key; the same for every process.
      images: `[N, H, W, 3]` float32, normalized.
      targets: `[N, classes]` float32.
      mask: `[N]` float32.
      mixup: float32 scalar, alpha of Beta(alpha, alpha); 0 is off. Per image the
        larger of lambda and 1 - lambda weighs the image itself.
      cutmix: float32 scalar, alpha of the box's area; 0 is off.
      group_images: size of a group; even, divides N.

    Source: mixup's alpha by stage is the paper's (Table 6). Halves and the reversed
    partner follow the released code.
    Differs: the released code reverses each core's batch, and weighs all CutMix
    labels of a batch by one mean area; here each image has its own.
    """
    n = images.shape[0]
    assert n % group_images == 0 and group_images % 2 == 0, (n, group_images)
    lambda_rng, y_rng, x_rng = jax.random.split(rng, 3)
    paired = mask * _partner(mask, group_images)
    both = (mixup > 0) & (cutmix > 0)
    first_half = jnp.arange(n) % group_images < group_images // 2
    use_mixup = (paired > 0) & (mixup > 0) & (first_half | ~both)
    use_cutmix = (paired > 0) & (cutmix > 0) & (~first_half | ~both)

    # One draw of Beta(alpha, alpha) for both; an alpha of 0 is drawn as a small one.
    alpha = jnp.maximum(jnp.stack([mixup, cutmix]), 1e-2)[:, None]
    weight, kept_area = jax.random.beta(lambda_rng, alpha, alpha, (2, n), jnp.float32)
    weight = jnp.where(use_mixup, jnp.maximum(weight, 1.0 - weight), 1.0)
    side = jnp.sqrt(1.0 - kept_area)
    box = _boxes(y_rng, x_rng, side, height=images.shape[1], width=images.shape[2])
    box = box & use_cutmix[:, None, None]
    area = jnp.mean(box, axis=(1, 2), dtype=jnp.float32)

    pixel_weight = jnp.where(box, 0.0, weight[:, None, None])[..., None]  # [N, H, W, 1]
    target_weight = (weight * (1.0 - area))[:, None]
    return (
        pixel_weight * images + (1.0 - pixel_weight) * _partner(images, group_images),
        target_weight * targets
        + (1.0 - target_weight) * _partner(targets, group_images),
    )


def _partner(x: jax.Array, group_images: int) -> jax.Array:
    """Returns x with every half group of its first axis reversed."""
    halves = x.reshape(-1, group_images // 2, *x.shape[1:])
    return halves[:, ::-1].reshape(x.shape)


def _boxes(y_rng, x_rng, side: jax.Array, *, height: int, width: int) -> jax.Array:
    """Returns `[N, H, W]` bool: boxes around uniform centres, cut at the border.

    `side` is `[N]`: length of the box's sides as a fraction of the image's.
    """

    def inside(rng, length):
        centre = jax.random.uniform(rng, side.shape) * length
        half = 0.5 * side * length
        pixels = jnp.arange(length, dtype=jnp.float32)[None, :] + 0.5
        return (pixels > (centre - half)[:, None]) & (pixels < (centre + half)[:, None])

    return inside(y_rng, height)[:, :, None] & inside(x_rng, width)[:, None, :]

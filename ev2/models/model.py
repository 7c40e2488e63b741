"""`create_model`, and the `Model` by which the rest of ev2 uses a network.

A network is two functions, `init` and `apply`, over two plain trees of float32 arrays:
`params` and `batch_stats`. Only this package imports Flax.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ev2 import errors
from ev2.models import arch, efficientnet, layers, resnet

Variables = dict[str, Any]  # {"params": tree, "batch_stats": tree}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A network, without its weights.

    Attributes:
        name: as in `ev2.list_models`.
        num_classes: number of logits; 0 for pooled features.
        arch: its stem, stages and head.
        module: the Flax module.
    """

    name: str
    num_classes: int
    arch: arch.ArchSpec
    module: nn.Module

    @property
    def eval_image_size(self) -> int:
        """Default image size of evaluation, px."""
        return self.arch.eval_image_size

    def init(self, rng: jax.Array, image_size: int = 224) -> Variables:
        """Returns fresh `{"params", "batch_stats"}`, float32.

        The values do not depend on `image_size`. Runs under `jax.jit` and
        `jax.eval_shape`; by itself it is one compiled program.
        """
        return _init(self, rng, image_size)

    def apply(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool = False,
        dropout: jax.Array | float = 0.0,
        drop_path: jax.Array | float = 0.0,
        rng: jax.Array | None = None,
        endpoints: bool = False,
    ) -> Any:
        """Returns logits; when training, `(logits, batch_stats)`.

        Args:
            variables: as `init` returns.
            images: `[N, H, W, 3]` float, normalized, of any size.
            train: normalizes by the batch, drops, and returns the updated running
                statistics beside the logits.
            dropout: rate before the classifier, in [0, 1). A traced scalar does not
                recompile when it changes; 0 is exactly no dropout. Training only.
            drop_path: the same for the rate at the end of the stochastic-depth ramp.
            rng: key of both; without it nothing is dropped.
            endpoints: returns `(logits, endpoints)` in place of the logits.

        Returns:
            `[N, num_classes]` float32 logits, or `[N, C]` float32 pooled features if
            `num_classes` is 0.

            Endpoints, for use as a backbone, are a dict. `reduction_1` to
            `reduction_5` are the last maps of side 1/2 to 1/32 of the image, before
            the head; `stem`, `stage1_block0` and so on, and `head` are the maps by
            their names in the parameter tree, all `[N, H, W, C]` in the compute
            dtype; `features` is pooled, `[N, C]` float32.

        Raises:
            InputError: `bn_group_images` does not divide the batch.
            ValueError: a rate other than a plain 0 comes without `rng`.
        """
        options: dict[str, Any] = {}
        if train:
            if rng is None and not (_is_zero(dropout) and _is_zero(drop_path)):
                raise ValueError(
                    "rng: needed with a dropout or drop_path rate; pass a key"
                )
            options = {"dropout": dropout, "drop_path": drop_path, "rng": rng}
        mutable = ["batch_stats"] * train + ["endpoints"] * endpoints
        logits, changed = self.module.apply(
            variables, images, train=train, mutable=mutable, **options
        )
        outputs = logits
        if endpoints:
            outputs = logits, self._name_endpoints(changed["endpoints"]["maps"])
        return (outputs, changed["batch_stats"]) if train else outputs

    def _name_endpoints(self, maps: Any) -> dict[str, jax.Array]:
        """Returns the maps by name, and the last of each size as `reduction_i`."""
        names = ["stem", *(name for name, _ in self.arch.named_blocks)]
        strides = [block.stride for _, block in self.arch.named_blocks]
        if self.arch.is_resnet:
            strides[0] = 2  # its max pool
        # A ResNet has no head.
        endpoints = dict(zip([*names, "head"], maps, strict=False))
        last = [name for name, s in zip(names, [*strides, 2], strict=True) if s > 1]
        endpoints |= {f"reduction_{i}": endpoints[n] for i, n in enumerate(last, 1)}
        features = jnp.mean(maps[-1], axis=(1, 2), dtype=jnp.float32)
        return endpoints | {"features": features}


def _is_zero(rate: jax.Array | float) -> bool:
    return isinstance(rate, int | float) and rate == 0


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(model: Model, rng: jax.Array, image_size: int) -> Variables:
    images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    mutable = ["params", "batch_stats"]
    variables = dict(model.module.init(rng, images, train=False, mutable=mutable))
    return {**variables, "params": draw_kernels(rng, variables["params"])}


def draw_kernels(rng: jax.Array, params: Any) -> Any:
    """Returns fresh `params` with every kernel drawn at random.

    Before this call a kernel holds the scale of its distribution. It is multiplied by
    standard normal draws in convolutions (rank 4) and by uniform draws on [-1, 1) in a
    dense layer (rank 2). Biases and scales stay as they are.

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


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    dtype: str = "float32",
    bn_momentum: float = 0.99,
    bn_group_images: int = 0,
    bn_frozen: bool = False,
    blocks: Sequence[str] = (),
    padding: str = "",
    remat: bool = False,
) -> Model:
    """Returns the network called `name`.

    Args:
        name: one of `ev2.list_models()`.
        num_classes: number of logits; 0 for pooled features, without a classifier.
        dtype: compute dtype, "float32" or "bfloat16".
        bn_momentum: fraction of the running statistics kept at each step, in [0, 1).
            Paper 0.99, released code 0.9.
        bn_group_images: consecutive images of the global batch that share
            BatchNorm statistics; 0 for all of them.
        bn_frozen: normalizes by the running statistics in training, too, and leaves
            them unchanged.
        blocks: block strings (see `ev2.models.arch`) that replace the network's stages.
            Stem and head stay; the first stage starts at the width of the stem.
        padding: "same" or "symmetric", see `arch.PADDINGS`; "" for the network's
            own, "symmetric" for ResNets and "same" for EfficientNets.
        remat: computes the inside of each block twice in training and keeps less; same
            values, less memory, more time. Not for ResNets.

    Raises:
        InputError: a value is not allowed, or the blocks do not fit.
    """
    errors.check_choice("model.dtype", dtype, arch.DTYPES)
    if num_classes < 0:
        raise errors.InputError(
            f"num_classes: {num_classes} is negative; use 0 or more"
        )
    if not 0 <= bn_momentum < 1:
        raise errors.InputError(
            f"model.bn_momentum: {bn_momentum} is not allowed; use a fraction in [0, 1)"
        )
    if bn_group_images < 0:
        raise errors.InputError(
            f"model.bn_group_images: {bn_group_images} is negative; use a number of "
            "images, or 0 for the whole batch"
        )
    spec = arch.get(name, tuple(blocks), padding)
    network = resnet if spec.is_resnet else efficientnet
    options = layers.LayerOptions(
        dtype=jnp.dtype(dtype),
        padding=spec.padding,
        activation=spec.activation,
        bn_momentum=bn_momentum,
        bn_epsilon=network.BN_EPSILON,
        bn_group_images=bn_group_images,
        bn_frozen=bn_frozen,
    )
    if not spec.is_resnet:
        module = efficientnet.EfficientNet(spec, options, num_classes, remat)
    elif remat:
        raise errors.InputError(f"model.remat: {name} does not support it; use False")
    else:
        module = resnet.ResNet(spec, options, num_classes)
    return Model(name=name, num_classes=num_classes, arch=spec, module=module)

"""Networks by name: `create_model`, and the `Model` that the rest of ev2 sees.

Flax is imported in this package alone. To others a network is two functions, `init`
and `apply`, over two plain trees of float32 arrays: `params` and `batch_stats`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ev2 import errors
from ev2.models import arch as architectures
from ev2.models import efficientnet, layers, resnet

Variables = dict[str, Any]  # {"params": tree, "batch_stats": tree}
_STATE = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A network, without its weights.

    Attributes:
        name: as in `ev2.list_models`.
        num_classes: number of logits; 0 for pooled features.
        arch: the rows it is made of.
        module: the Flax module.
    """

    name: str
    num_classes: int
    arch: architectures.ArchSpec
    module: nn.Module

    @property
    def eval_image_size(self) -> int:
        """Side in pixels that the network is evaluated at by default."""
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
            train: whether to normalize by the batch, drop, and return the running
                statistics after this batch beside the logits.
            dropout: rate before the classifier, in [0, 1). A traced scalar does not
                recompile when it moves; 0 is exactly no dropout. Training only.
            drop_path: the same for the rate at the end of the stochastic-depth ramp.
            rng: key of both; without it nothing is dropped.
            endpoints: whether to return `(logits, endpoints)` in place of the logits.

        Returns:
            `[N, num_classes]` float32 logits, or `[N, C]` float32 pooled features if
            `num_classes` is 0.

            Endpoints, for use as a backbone, are a dict. `reduction_1` to
            `reduction_5` are the last maps of side 1/2 to 1/32 of the image, before
            the head; `stem`, `stage1_block0` and so on, and `head` are the maps by
            their names in the parameter tree, all `[N, H, W, C]` in the compute
            dtype; `features` is pooled, `[N, C]` float32.

        Raises:
            InputError: if `bn_group_images` does not divide the batch.
            ValueError: if a rate other than a plain 0 comes without `rng`.
        """
        mutable = ["endpoints"] if endpoints else []
        if not train:
            logits, made = self.module.apply(
                variables, images, train=False, mutable=mutable
            )
            return (logits, self._name_ends(made["endpoints"])) if endpoints else logits
        if rng is None and not (_is_zero(dropout) and _is_zero(drop_path)):
            raise ValueError("rng: needed with a dropout or drop_path rate; pass a key")
        logits, made = self.module.apply(
            variables,
            images,
            train=True,
            dropout=dropout,
            drop_path=drop_path,
            rng=rng,
            mutable=["batch_stats", *mutable],
        )
        outputs = (logits, self._name_ends(made["endpoints"])) if endpoints else logits
        return outputs, made["batch_stats"]

    def _name_ends(self, made: Any) -> dict[str, jax.Array]:
        """The maps by name, and the last of each size as `reduction_i`."""
        sown = made["maps"]
        names = ["stem", *(name for name, _ in self.arch.named_blocks)]
        strides = [row.stride for _, row in self.arch.named_blocks]
        if self.arch.is_resnet:
            strides[0] = 2  # its max pool
        ends = dict(zip([*names, "head"], sown, strict=False))  # a ResNet has no head
        last = [name for name, s in zip(names, [*strides, 2], strict=True) if s > 1]
        ends |= {f"reduction_{i}": ends[name] for i, name in enumerate(last, start=1)}
        return ends | {"features": jnp.mean(sown[-1], axis=(1, 2), dtype=jnp.float32)}


def _is_zero(rate: jax.Array | float) -> bool:
    return isinstance(rate, int | float) and rate == 0


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(model: Model, rng: jax.Array, image_size: int) -> Variables:
    images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    variables = dict(model.module.init(rng, images, train=False, mutable=_STATE))
    return {**variables, "params": layers.draw_kernels(rng, variables["params"])}


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
        bn_momentum: share of the running statistics kept at each step, in [0, 1).
            Paper 0.99, released code 0.9.
        bn_group_images: consecutive images of the global batch that share
            BatchNorm statistics; 0 for all of them.
        bn_frozen: whether training leaves the running statistics as they are, and
            normalizes by them.
        blocks: block strings (see `ev2.models.arch`) in place of the network's rows.
            Stem and head stay; the first row starts at the width of the stem.
        padding: "same" or "symmetric", see `arch.PADDINGS`; "" for the network's
            own, which is "symmetric" for ResNets and "same" for all others.
        remat: whether training computes the inside of each block twice and keeps
            less; same values, less memory, more time. Not for ResNets.

    Raises:
        InputError: if a value is not allowed, or the blocks do not fit.
    """
    errors.check_choice("model.dtype", dtype, architectures.DTYPES)
    if num_classes < 0:
        raise errors.InputError(
            f"num_classes: {num_classes} is negative; use 0 or more"
        )
    if not 0 <= bn_momentum < 1:
        raise errors.InputError(
            f"model.bn_momentum: {bn_momentum} is not allowed; use a share in [0, 1)"
        )
    if bn_group_images < 0:
        raise errors.InputError(
            f"model.bn_group_images: {bn_group_images} is negative; use a number of "
            "images, or 0 for the whole batch"
        )
    arch = architectures.get(name, tuple(blocks), padding)
    options: dict[str, Any] = dict(
        arch=arch,
        num_classes=num_classes,
        dtype=jnp.dtype(dtype),
        bn_momentum=bn_momentum,
        bn_group_images=bn_group_images,
        bn_frozen=bn_frozen,
    )
    if not arch.is_resnet:
        module = efficientnet.EfficientNet(remat=remat, **options)
    elif remat:
        raise errors.InputError(f"model.remat: {name} has none; use False")
    else:
        module = resnet.ResNet(**options)
    return Model(name=name, num_classes=num_classes, arch=arch, module=module)

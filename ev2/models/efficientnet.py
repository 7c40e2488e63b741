"""EfficientNet V1, V2 and Lite: stem, rows of MBConv and Fused-MBConv blocks, head.

The parameter tree; its names are API: `ev2.checkpoint.published` maps onto them:

    stem/{conv,norm}
    stage1_block0/...   one per block; what is inside, in `ev2.models.blocks`
    head/{conv,norm}
    classifier
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ev2.models import arch as architectures
from ev2.models import batch_norm as norms
from ev2.models import blocks, layers

# Released code, hparams.py. (Momentum differs from the paper's: a config value.)
BN_EPSILON = 1e-3


class EfficientNet(nn.Module):
    """A network of MBConv rows, ending in a dense classifier.

    Attributes:
        arch: stem, rows and head.
        num_classes: number of logits; 0 returns the pooled features.
        dtype: compute dtype. Parameters, statistics and logits are float32.
        bn_momentum: as `norms.BatchNorm.momentum`.
        bn_group_images: as `norms.BatchNorm.group_images`.
        remat: whether to keep, in training, only what lies between blocks, and to
            compute the inside of a block anew for its gradient.
        bn_frozen: as `norms.BatchNorm.frozen`.
    """

    arch: architectures.ArchSpec
    num_classes: int
    dtype: Any = jnp.float32
    bn_momentum: float = 0.99
    bn_group_images: int = 0
    remat: bool = False
    bn_frozen: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        dropout: jax.Array | float = 0.0,
        drop_path: jax.Array | float = 0.0,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Returns logits `[N, num_classes]` or features `[N, C]`, float32.

        Args:
            x: `[N, H, W, 3]` float, normalized.
            train: whether to use, and update, the statistics of the batch.
            dropout: rate before the classifier, in [0, 1).
            drop_path: rate of the last block, in [0, 1); see `layers.drop_path_at`.
            rng: key of both; None drops nothing.
        """
        dropout_rng, path_rng = (None, None) if rng is None else jax.random.split(rng)
        padding, activation = (
            self.arch.padding,
            layers.ACTIVATIONS[self.arch.activation],
        )
        conv = functools.partial(layers.Conv, padding=padding, dtype=self.dtype)
        norm = functools.partial(
            norms.BatchNorm,
            momentum=self.bn_momentum,
            epsilon=BN_EPSILON,
            group_images=self.bn_group_images,
            frozen=self.bn_frozen,
            dtype=self.dtype,
        )
        conv_norm = functools.partial(layers.ConvNorm, norm=norm, activation=activation)

        stem = functools.partial(conv, self.arch.stem_channels, kernel=3, stride=2)
        x = conv_norm(stem, name="stem")(x, train=train)
        self.sow("endpoints", "maps", x)
        for index, (name, row) in enumerate(self.arch.named_blocks):
            drop = layers.drop_path_at(
                index, self.arch.num_blocks, rate=drop_path, rng=path_rng
            )
            block = self._block(
                row, conv=conv, norm=norm, activation=activation, name=name
            )
            call = functools.partial(_call, train=train, drop_path=drop)
            x = (nn.remat(call) if self.remat else call)(block, x)
            self.sow("endpoints", "maps", x)
        head = functools.partial(conv, self.arch.head_channels)
        x = conv_norm(head, name="head")(x, train=train)
        self.sow("endpoints", "maps", x)
        classifier = layers.Classifier(self.num_classes, name="classifier")
        return classifier(x, dropout=dropout, rng=dropout_rng)

    def _block(self, row: architectures.StageSpec, **options: Any) -> nn.Module:
        if row.operator == architectures.FUSED_MBCONV:
            return blocks.FusedMBConv(row, **options)
        depthwise = functools.partial(
            layers.DepthwiseConv, padding=self.arch.padding, dtype=self.dtype
        )
        return blocks.MBConv(row, depthwise=depthwise, **options)


def _call(block: nn.Module, x: jax.Array, **options: Any) -> jax.Array:
    return block(x, **options)

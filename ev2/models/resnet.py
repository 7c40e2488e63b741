"""ResNet-50, 101 and 152: the "v1.5" of today's benchmarks and, by rows, "v1".

The parameter tree:

    stem/{conv,norm}
    stage1_block0/{reduce,spatial,expand,shortcut}/{conv,norm}
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
from ev2.models.ops import convolution

# What torchvision, timm and Flax's example use (Keras: 1.001e-5).
BN_EPSILON = 1e-5


class ResNet(nn.Module):
    """Stem of 7x7 and a max pool, rows of bottlenecks, pool, dense classifier.

    Attributes and arguments are those of `efficientnet.EfficientNet`. Dropout and
    stochastic depth are no part of the original; at rate 0 they do nothing.

    Source: He et al., CVPR 2016, Table 1.
    """

    arch: architectures.ArchSpec
    num_classes: int
    dtype: Any = jnp.float32
    bn_momentum: float = 0.99
    bn_group_images: int = 0
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
        """Returns logits `[N, num_classes]` or features `[N, 2048]`, float32."""
        dropout_rng, path_rng = (None, None) if rng is None else jax.random.split(rng)
        padding = self.arch.padding
        conv = functools.partial(layers.Conv, padding=padding, dtype=self.dtype)
        norm = functools.partial(
            norms.BatchNorm,
            momentum=self.bn_momentum,
            epsilon=BN_EPSILON,
            group_images=self.bn_group_images,
            frozen=self.bn_frozen,
            dtype=self.dtype,
        )

        stem = functools.partial(conv, self.arch.stem_channels, kernel=7, stride=2)
        x = layers.ConvNorm(stem, norm, nn.relu, name="stem")(x, train=train)
        self.sow("endpoints", "maps", x)
        pads: Any = convolution.pads_of(
            x.shape, 3, 2, padding
        )  # Flax declares a string
        x = nn.max_pool(x, (3, 3), (2, 2), pads)
        for index, (name, row) in enumerate(self.arch.named_blocks):
            drop = layers.drop_path_at(
                index, self.arch.num_blocks, rate=drop_path, rng=path_rng
            )
            block = blocks.Bottleneck(row, conv=conv, norm=norm, name=name)
            x = block(x, train=train, drop_path=drop)
            self.sow("endpoints", "maps", x)
        classifier = layers.Classifier(self.num_classes, name="classifier")
        return classifier(x, dropout=dropout, rng=dropout_rng)

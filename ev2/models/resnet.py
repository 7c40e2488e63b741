"""ResNet-50, 101 and 152: the "v1.5" of today's benchmarks or, by its blocks, "v1".

The parameter tree:

    stem/{conv,norm}
    stage1_block0/{reduce,spatial,expand,shortcut}/{conv,norm}
    classifier
"""

import functools
from typing import Any

import jax
from flax import linen as nn

from ev2.models import arch, blocks, layers
from ev2.models.ops import convolution

# As in torchvision, timm and Flax's example (Keras: 1.001e-5).
BN_EPSILON = 1e-5


class Bottleneck(nn.Module):
    """ResNet block: 1x1 reduce, 3x3, 1x1 expand, add, ReLU.

    Where the shape changes, the shortcut is a 1x1 projection. The last scale starts at
    zero, so that every block starts as its shortcut. The stride is in the 3x3 ("v1.5"),
    or in the first 1x1 if the operator is `BOTTLENECK_V1`.

    Source: He et al., CVPR 2016, Figure 5 (v1); Goyal et al., 2017, section 5.1
    (v1.5 and the zero).
    """

    spec: arch.StageSpec
    options: layers.LayerOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, drop_path: blocks.DropPath
    ) -> jax.Array:
        spec, hidden, shortcut = self.spec, self.spec.hidden_channels, x
        conv = functools.partial(layers.ConvNorm, self.options)
        last = functools.partial(conv, spec.out_channels, activate=False)
        early = spec.stride if spec.operator == arch.BOTTLENECK_V1 else 1
        late = spec.stride // early
        x = conv(hidden, stride=early, name="reduce")(x, train)
        x = conv(hidden, spec.kernel, late, name="spatial")(x, train)
        x = last(zero_init=True, name="expand")(x, train)
        if not spec.has_skip:
            shortcut = last(stride=spec.stride, name="shortcut")(shortcut, train)
        return nn.relu(shortcut + drop_path(x))


class ResNet(nn.Module):
    """Stem of 7x7 and a max pool, stages of bottlenecks, dense classifier.

    For attributes and arguments see `efficientnet.EfficientNet`. The original has
    neither dropout nor stochastic depth; at rate 0 they do nothing.

    Source: He et al., CVPR 2016, Table 1.
    """

    spec: arch.ArchSpec
    options: layers.LayerOptions
    num_classes: int

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
        spec, options = self.spec, self.options
        dropout_rng, path_rng = (None, None) if rng is None else jax.random.split(rng)
        x = layers.ConvNorm(options, spec.stem_channels, 7, 2, name="stem")(x, train)
        self.sow("endpoints", "maps", x)
        # Flax declares a string.
        pads: Any = convolution.pads_of(x.shape, 3, 2, spec.padding)
        x = nn.max_pool(x, (3, 3), (2, 2), pads)
        for index, (name, stage) in enumerate(spec.named_blocks):
            drop = layers.drop_path_at(index, spec.num_blocks, drop_path, path_rng)
            x = Bottleneck(stage, options, name=name)(x, train, drop)
            self.sow("endpoints", "maps", x)
        classifier = layers.Classifier(self.num_classes, name="classifier")
        return classifier(x, dropout=dropout, rng=dropout_rng)

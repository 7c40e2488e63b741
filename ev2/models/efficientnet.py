"""EfficientNet V1, V2 and Lite: stem, stages of MBConv and Fused-MBConv, head.

The parameter tree, whose names are API (`ev2.checkpoint.published` maps onto them):

    stem/{conv,norm}
    stage1_block0/...   one per block; for its content see `ev2.models.blocks`
    head/{conv,norm}
    classifier
"""

import functools

import jax
from flax import linen as nn

from ev2.models import arch, blocks, layers

BN_EPSILON = 1e-3  # released code, hparams.py
_BLOCKS = {arch.MBCONV: blocks.MBConv, arch.FUSED_MBCONV: blocks.FusedMBConv}


class EfficientNet(nn.Module):
    """A network of MBConv stages, ending in a dense classifier.

    Attributes:
        spec: stem, stages and head.
        options: shared by all layers.
        num_classes: number of logits; 0 returns the pooled features.
        remat: keeps only the maps between blocks in training, and computes the inside
            of a block again for its gradient.
    """

    spec: arch.ArchSpec
    options: layers.LayerOptions
    num_classes: int
    remat: bool = False

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
        """Returns logits `[N, num_classes]` of `[N, H, W, 3]`; see `Model.apply`."""
        spec, options = self.spec, self.options
        dropout_rng, path_rng = (None, None) if rng is None else jax.random.split(rng)
        x = layers.ConvNorm(options, spec.stem_channels, 3, 2, name="stem")(x, train)
        self.sow("endpoints", "maps", x)
        for index, (name, stage) in enumerate(spec.named_blocks):
            block = _BLOCKS[stage.operator](stage, options, name=name)
            drop = layers.drop_path_at(index, spec.num_blocks, drop_path, path_rng)
            call = functools.partial(_call, train=train, drop_path=drop)
            x = (nn.remat(call) if self.remat else call)(block, x)
            self.sow("endpoints", "maps", x)
        x = layers.ConvNorm(options, spec.head_channels, name="head")(x, train)
        self.sow("endpoints", "maps", x)
        classifier = layers.Classifier(self.num_classes, name="classifier")
        return classifier(x, dropout=dropout, rng=dropout_rng)


def _call(block: nn.Module, x: jax.Array, train: bool, drop_path: blocks.DropPath):
    return block(x, train, drop_path)

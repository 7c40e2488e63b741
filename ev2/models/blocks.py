"""Residual blocks of EfficientNet: MBConv and Fused-MBConv.

A block is built from a stage of one layer (see `ev2.models.arch`). `drop_path` is a
function of the residual branch.
"""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from ev2.models import arch, layers

DropPath = Callable[[jax.Array], jax.Array]


class MBConv(nn.Module):
    """Inverted residual: 1x1 expand, depthwise, squeeze-and-excite, 1x1 project.

    Also known as `InvertedResidual`; with expand ratio 1 there is no 1x1 expand
    (`DepthwiseSeparable`). The squeeze-and-excite width follows the block's input.

    Source: paper, Figure 2 and Table 4.
    """

    spec: arch.StageSpec
    options: layers.LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, drop_path: DropPath) -> jax.Array:
        spec, hidden, inputs = self.spec, self.spec.hidden_channels, x
        conv = functools.partial(layers.ConvNorm, self.options)
        if spec.expand != 1:
            x = conv(hidden, tpu_form="moments", name="expand")(x, train)
        depthwise = functools.partial(conv, depthwise=True, tpu_form="deferred")
        x = depthwise(hidden, spec.kernel, spec.stride, name="depthwise")(x, train)
        if spec.se_channels:
            x = layers.SqueezeExcite(self.options, spec.se_channels, name="se")(x)
        x = conv(spec.out_channels, activate=False, name="project")(x, train)
        return inputs + drop_path(x) if spec.has_skip else x


class FusedMBConv(nn.Module):
    """MBConv with expand and depthwise fused into one full convolution.

    With expand ratio 1 there is no projection either: one convolution, activated at its
    end. No network of the paper has squeeze-and-excite here; search may.

    Source: paper, Figure 2; the ratio-1 form is the released code's.
    """

    spec: arch.StageSpec
    options: layers.LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, drop_path: DropPath) -> jax.Array:
        spec, inputs = self.spec, x
        conv = functools.partial(layers.ConvNorm, self.options)
        size = (spec.kernel, spec.stride)
        if spec.expand != 1:
            hidden = spec.hidden_channels
            x = conv(hidden, *size, tpu_form="deferred", name="fused")(x, train)
        if spec.se_channels:
            x = layers.SqueezeExcite(self.options, spec.se_channels, name="se")(x)
        if spec.expand != 1:
            x = conv(spec.out_channels, activate=False, name="project")(x, train)
        else:
            x = conv(spec.out_channels, *size, name="fused")(x, train)
        return inputs + drop_path(x) if spec.has_skip else x

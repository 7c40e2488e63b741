"""The residual blocks: MBConv, Fused-MBConv and the ResNet bottleneck.

Each is built from one row (see `ev2.models.arch`) with one layer. `conv`, `depthwise`
and `norm` come bound from the network; `drop_path` is a function of the residual
branch.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from ev2.models import arch, layers

DropPath = Callable[[jax.Array], jax.Array]


class MBConv(nn.Module):
    """Inverted residual: 1x1 expand, depthwise, squeeze-and-excite, 1x1 project.

    Known as `InvertedResidual` elsewhere; with expand ratio 1 there is no 1x1 expand
    (`DepthwiseSeparable`). Activation after the first two, none after the projection.
    The input is added where stride and width let it.

    Source: paper, Figure 2 and Table 4. SE width from the block's input channels.
    """

    row: arch.StageSpec
    conv: Any
    depthwise: Any
    norm: Any
    activation: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, drop_path: DropPath) -> jax.Array:
        row, inputs = self.row, x
        conv_norm = functools.partial(layers.ConvNorm, norm=self.norm)
        if row.expand != 1:
            expand = functools.partial(self.conv, row.hidden_channels)
            x = conv_norm(
                expand, activation=self.activation, widens=True, name="expand"
            )(x, train=train)
        depthwise = functools.partial(self.depthwise, row.kernel, row.stride)
        x = conv_norm(
            depthwise,
            activation=self.activation,
            defer=True,
            name="depthwise",
        )(x, train=train)
        if row.se_channels:
            x = layers.SqueezeExcite(row.se_channels, self.conv, name="se")(x)
        project = functools.partial(self.conv, row.out_channels)
        x = conv_norm(project, name="project")(x, train=train)
        return inputs + drop_path(x) if has_skip(row) else x


class FusedMBConv(nn.Module):
    """MBConv with expand and depthwise fused into one full convolution.

    With expand ratio 1 there is no projection either: one convolution, activated at
    its end. No variant of the paper has squeeze-and-excite here; search may.

    Source: paper, Figure 2; the ratio-1 form is the released code's.
    """

    row: arch.StageSpec
    conv: Any
    norm: Any
    activation: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, drop_path: DropPath) -> jax.Array:
        row, inputs = self.row, x
        conv_norm = functools.partial(layers.ConvNorm, norm=self.norm)
        spatial = functools.partial(self.conv, kernel=row.kernel, stride=row.stride)
        se = functools.partial(layers.SqueezeExcite, row.se_channels, self.conv)
        if row.expand == 1:
            x = se(name="se")(x) if row.se_channels else x
            fused = functools.partial(spatial, row.out_channels)
            x = conv_norm(fused, activation=self.activation, name="fused")(
                x, train=train
            )
        else:
            fused = functools.partial(spatial, row.hidden_channels)
            x = conv_norm(fused, activation=self.activation, defer=True, name="fused")(
                x, train=train
            )
            x = se(name="se")(x) if row.se_channels else x
            project = functools.partial(self.conv, row.out_channels)
            x = conv_norm(project, name="project")(x, train=train)
        return inputs + drop_path(x) if has_skip(row) else x


class Bottleneck(nn.Module):
    """ResNet block: 1x1 reduce, 3x3, 1x1 expand, add, ReLU.

    A 1x1 projection takes the place of the identity where the shape changes. The last
    scale starts at zero, so that every block starts as its shortcut.

    The stride is in the 3x3 ("v1.5"), or in the first 1x1 if the row's operator is
    `BOTTLENECK_V1`.

    Source: He et al., CVPR 2016, Figure 5 (v1); Goyal et al., 2017, section 5.1
    (v1.5 and the zero).
    """

    row: arch.StageSpec
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, drop_path: DropPath) -> jax.Array:
        row, shortcut = self.row, x
        conv_norm = functools.partial(layers.ConvNorm, norm=self.norm)
        early = row.stride if row.operator == arch.BOTTLENECK_V1 else 1
        reduce = functools.partial(self.conv, row.hidden_channels, stride=early)
        x = conv_norm(reduce, activation=nn.relu, name="reduce")(x, train=train)
        spatial = functools.partial(
            self.conv,
            row.hidden_channels,
            kernel=row.kernel,
            stride=row.stride // early,
        )
        x = conv_norm(spatial, activation=nn.relu, name="spatial")(x, train=train)
        expand = functools.partial(self.conv, row.out_channels)
        last_norm = functools.partial(self.norm, scale_init=nn.initializers.zeros)
        x = layers.ConvNorm(expand, last_norm, name="expand")(x, train=train)
        if not has_skip(row):
            project = functools.partial(self.conv, row.out_channels, stride=row.stride)
            shortcut = conv_norm(project, name="shortcut")(shortcut, train=train)
        return nn.relu(shortcut + drop_path(x))


def has_skip(row: arch.StageSpec) -> bool:
    """Returns whether the block's input can be added to its output as it is."""
    return row.stride == 1 and row.in_channels == row.out_channels

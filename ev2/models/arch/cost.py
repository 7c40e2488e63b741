"""Counts the parameters and multiply-adds of a network from its specification.

A search compares thousands of networks a second by it.
"""

import dataclasses
import math

from ev2.models.arch.spec import BOTTLENECK_V1, FUSED_MBCONV, ArchSpec, StageSpec


@dataclasses.dataclass
class _Cost:
    """Sums over layers; `size` is the side in pixels of the map after the last."""

    size: int
    params: int = 0
    multiply_adds: int = 0

    def convolve(self, kernel: int, stride: int, before: int, after: int) -> None:
        """Adds a convolution without bias and its BatchNorm; depthwise: `before` 1."""
        self.size = math.ceil(self.size / stride)
        weights = kernel**2 * before * after
        self.params += weights + 2 * after
        self.multiply_adds += weights * self.size**2

    def connect(self, before: int, after: int) -> None:
        """Adds a 1x1 convolution with bias on one pixel, or a classifier."""
        self.params += (before + 1) * after
        self.multiply_adds += before * after

    def squeeze_excite(self, width: int, hidden: int) -> None:
        """Adds a squeeze-and-excite of `hidden` channels; 0 adds nothing."""
        if hidden:
            self.connect(width, hidden)
            self.connect(hidden, width)


def count_params(spec: ArchSpec, num_classes: int) -> int:
    """Returns the number of trainable parameters, without BatchNorm statistics."""
    return _count(spec, num_classes, spec.eval_image_size).params


def count_multiply_adds(
    spec: ArchSpec, num_classes: int, image_size: int | None = None
) -> int:
    """Returns the multiply-adds of inference on one image, which papers call FLOPs.

    Convolutions and the classifier are counted; normalization, activations and sums
    are not.

    Args:
        spec: the network.
        num_classes: number of logits.
        image_size: px; None for `spec.eval_image_size`.
    """
    return _count(spec, num_classes, image_size or spec.eval_image_size).multiply_adds


def _count(spec: ArchSpec, num_classes: int, image_size: int) -> _Cost:
    cost = _Cost(image_size)
    cost.convolve(7 if spec.is_resnet else 3, 2, 3, spec.stem_channels)
    if spec.is_resnet:
        cost.size = math.ceil(cost.size / 2)  # max pooling
    add_block = _add_bottleneck if spec.is_resnet else _add_mbconv
    for _, block in spec.named_blocks:
        add_block(cost, block)
    width = spec.stages[-1].out_channels
    if spec.head_channels:
        cost.convolve(1, 1, width, spec.head_channels)
        width = spec.head_channels
    cost.connect(width, num_classes)
    return cost


def _add_mbconv(cost: _Cost, block: StageSpec) -> None:
    """Adds an MBConv or a Fused-MBConv."""
    width, hidden, out = block.in_channels, block.hidden_channels, block.out_channels
    if block.operator == FUSED_MBCONV and block.expand == 1:
        cost.squeeze_excite(width, block.se_channels)
        cost.convolve(block.kernel, block.stride, width, out)
        return
    if block.operator == FUSED_MBCONV:
        cost.convolve(block.kernel, block.stride, width, hidden)
    else:
        if block.expand != 1:
            cost.convolve(1, 1, width, hidden)
        cost.convolve(block.kernel, block.stride, 1, hidden)
    cost.squeeze_excite(hidden, block.se_channels)
    cost.convolve(1, 1, hidden, out)


def _add_bottleneck(cost: _Cost, block: StageSpec) -> None:
    width, hidden, out = block.in_channels, block.hidden_channels, block.out_channels
    if not block.has_skip:
        shortcut = _Cost(cost.size)
        shortcut.convolve(1, block.stride, width, out)
        cost.params += shortcut.params
        cost.multiply_adds += shortcut.multiply_adds
    early = block.stride if block.operator == BOTTLENECK_V1 else 1
    cost.convolve(1, early, width, hidden)
    cost.convolve(block.kernel, block.stride // early, hidden, hidden)
    cost.convolve(1, 1, hidden, out)

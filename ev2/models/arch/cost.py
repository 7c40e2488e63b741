"""What a network costs, counted from its rows: parameters and multiply-adds.

Standard library only, so that a search can weigh thousands of networks a second.
"""

import dataclasses
import math

from ev2.models.arch.spec import BOTTLENECK, FUSED_MBCONV, MBCONV, Arch, Row


@dataclasses.dataclass
class _Cost:
    """Sums over convolutions; `size` is the side in pixels of what comes next."""

    size: int
    params: int = 0
    multiply_adds: int = 0

    def convolve(
        self,
        kernel: int,
        stride: int,
        before: int,
        after: int,
        *,
        depthwise: bool = False,
    ) -> None:
        """Adds a convolution without bias and the BatchNorm behind it."""
        self.size = math.ceil(self.size / stride)
        weights = kernel**2 * (1 if depthwise else before) * after
        self.params += weights + 2 * after
        self.multiply_adds += weights * self.size**2

    def connect(self, before: int, after: int) -> None:
        """Adds a 1x1 convolution with bias on one pixel, or a classifier."""
        self.params += (before + 1) * after
        self.multiply_adds += before * after


def count_params(arch: Arch, num_classes: int) -> int:
    """Returns the trainable parameters, statistics of BatchNorm not among them."""
    return _count(arch, num_classes, arch.eval_image_size).params


def count_multiply_adds(
    arch: Arch, num_classes: int, image_size: int | None = None
) -> int:
    """Returns the multiply-adds of one picture's inference, which papers call FLOPs.

    Args:
        arch: the network.
        num_classes: of the classifier.
        image_size: px; None for `arch.eval_image_size`.

    Those of convolutions and of the classifier: normalization, activations and sums
    are not counted.
    """
    return _count(arch, num_classes, image_size or arch.eval_image_size).multiply_adds


def _count(arch: Arch, num_classes: int, image_size: int) -> _Cost:
    cost = _Cost(image_size)
    cost.convolve(7 if arch.is_resnet else 3, 2, 3, arch.stem_channels)
    if arch.is_resnet:
        cost.size = math.ceil(cost.size / 2)  # max pooling
    for _, block in arch.named_blocks:
        if arch.is_resnet:
            _add_bottleneck(cost, block)
        else:
            _add_block(cost, block)
    width = arch.rows[-1].out_channels
    if arch.head_channels:
        cost.convolve(1, 1, width, arch.head_channels)
        width = arch.head_channels
    cost.connect(width, num_classes)
    return cost


def _add_block(cost: _Cost, block: Row) -> None:
    """Adds an MBConv or a Fused-MBConv."""
    hidden, out = block.hidden_channels, block.out_channels
    kernel, stride = block.kernel, block.stride
    fused = block.operator == FUSED_MBCONV
    if fused and block.expand == 1:
        if block.se_ratio:
            _add_se(cost, block, block.in_channels)
        cost.convolve(kernel, stride, block.in_channels, out)
        return
    if fused:
        cost.convolve(kernel, stride, block.in_channels, hidden)
    else:
        assert block.operator == MBCONV, block
        if block.expand != 1:
            cost.convolve(1, 1, block.in_channels, hidden)
        cost.convolve(kernel, stride, hidden, hidden, depthwise=True)
    if block.se_ratio:
        _add_se(cost, block, hidden)
    cost.convolve(1, 1, hidden, out)


def _add_se(cost: _Cost, block: Row, width: int) -> None:
    cost.connect(width, block.se_channels)
    cost.connect(block.se_channels, width)


def _add_bottleneck(cost: _Cost, block: Row) -> None:
    first, second = (
        (1, block.stride) if block.operator == BOTTLENECK else (block.stride, 1)
    )
    if block.stride != 1 or block.in_channels != block.out_channels:
        shortcut = _Cost(cost.size)
        shortcut.convolve(1, block.stride, block.in_channels, block.out_channels)
        cost.params += shortcut.params
        cost.multiply_adds += shortcut.multiply_adds
    hidden = block.hidden_channels
    cost.convolve(1, first, block.in_channels, hidden)
    cost.convolve(block.kernel, second, hidden, hidden)
    cost.convolve(1, 1, hidden, block.out_channels)

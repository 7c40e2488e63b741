"""Scales a found network up, as the paper scales S to M and L.

From the paper: width, depth and resolution are scaled together, later stages such as 5
and 6 get more layers than the others, and no network is evaluated above 480 px. It
gives no coefficients. The rule and `GROWN` are ours, fitted to the published M and L:
all numbers of layers agree, and widths are as near as one factor allows, since M and L
were scaled from other widths than those of S, L from twice the widths of B0.

Source: paper, section 3.3, "EfficientNetV2 Scaling"; M and L of the released code.

Standard library only.
"""

import dataclasses
import math
from collections.abc import Mapping

from ev2 import errors
from ev2.models.arch.spec import ArchSpec, StageSpec
from ev2.models.arch.table import round_channels

# Factors of `grow` by size. Depths: the middle of the steps of 0.05 that give S the
# published numbers of layers. Widths: then the step with the least sum
# of log ratios to the published network, in parameters, in multiply-adds and in the
# mean over stages of channels. Resolution: from S's 384 px to the published 480.
GROWN: Mapping[str, Mapping[str, float]] = {
    "m": {"width": 1.15, "depth": 1.1, "late_depth": 1.5, "resolution": 1.25},
    "l": {"width": 1.45, "depth": 1.6, "late_depth": 2.1, "resolution": 1.25},
}
_MAX_IMAGE_SIZE = 480  # px; paper, section 3.3
# The stage that is split off: its width over that of the stage before as in V1's table
# (320 to 192), and its fraction of the layers, rounded up, as in M and L (5 of 23, 7 of
# 32).
_SPLIT_WIDTH = 320 / 192
_SPLIT_LAYERS = 0.2


def grow(
    found: ArchSpec, *, width: float, depth: float, late_depth: float, resolution: float
) -> ArchSpec:
    """Returns `found` made larger, under the same name and with the same head.

    Stages are late from the one before the last of stride 2: in S the stages 5 and 6.
    If the last stage has stride 2, a fifth of its layers, but no layer that it had
    before, becomes one more stage, of stride 1 and 5/3 as wide, as in V1, M and L.

    Args:
        found: a network of MBConv or Fused-MBConv.
        width: factor to the channels of stem and stages, which are rounded to
            multiples of 8 as in B0 to B3.
        depth: factor to the layers of early stages, which are rounded up.
        late_depth: the same of late stages.
        resolution: factor to the evaluation size, which stops at 480 px.

    Raises:
        InputError: a factor is below 1, or `found` is a ResNet.
    """
    _check(
        found, width=width, depth=depth, late_depth=late_depth, resolution=resolution
    )
    stem = _widen(found.stem_channels, width)
    stages: list[StageSpec] = []
    for stage, widening in _deepen(found, depth, late_depth):
        before = stages[-1].out_channels if stages else stem
        after = _widen(stage.out_channels, width * widening)
        stages.append(
            dataclasses.replace(stage, in_channels=before, out_channels=after)
        )
    image_size = min(round(found.eval_image_size * resolution), _MAX_IMAGE_SIZE)
    return dataclasses.replace(
        found, stem_channels=stem, stages=tuple(stages), eval_image_size=image_size
    )


def _check(found: ArchSpec, **factors: float) -> None:
    for key, value in factors.items():
        if not 1 <= value < math.inf:
            raise errors.InputError(
                f"grow.{key}: {value!r} is not allowed; give a number, 1 or more"
            )
    if found.is_resnet:
        raise errors.InputError(
            f"grow.found: {found.name} is a ResNet, of other blocks; give an "
            "EfficientNet"
        )


def _widen(channels: int, factor: float) -> int:
    return round_channels(channels, factor, at_least_90_percent=False)


def _deepen(
    found: ArchSpec, depth: float, late_depth: float
) -> list[tuple[StageSpec, float]]:
    """Stages of the new depth and old width, each with its own factor of the width."""
    last = max(
        (i for i, stage in enumerate(found.stages) if stage.stride == 2), default=0
    )
    stages = []
    for index, stage in enumerate(found.stages):
        factor = late_depth if index >= last - 1 else depth
        layers = _round_up(stage.layers * factor)
        stages.append((dataclasses.replace(stage, layers=layers), 1.0))
    stage, gained = stages[-1][0], stages[-1][0].layers - found.stages[-1].layers
    split = min(_round_up(_SPLIT_LAYERS * stage.layers), gained)
    if stage.stride == 2 and split:
        stays = dataclasses.replace(stage, layers=stage.layers - split)
        new = dataclasses.replace(stage, layers=split, stride=1)
        stages[-1:] = [(stays, 1.0), (new, _SPLIT_WIDTH)]
    return stages


def _round_up(layers: float) -> int:
    return math.ceil(layers - 1e-9)  # 25 layers times 2.2 are 55, not 56

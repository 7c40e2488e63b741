"""Scales a network up, as the paper scales S to M and L.

The paper scales width, depth and resolution together, adds more layers to late stages
such as 5 and 6, and evaluates no network above 480 px. It gives no coefficients. The
rule and `GROWN` are fitted here to the published M and L: all numbers of layers agree,
and widths are as near as one factor allows, since M and L have other base widths than
S (L twice the widths of B0).

Source: paper, section 3.3, "EfficientNetV2 Scaling"; M and L of the released code.

Standard library only.
"""

import dataclasses
import math
from collections.abc import Mapping

from ev2 import errors
from ev2.models.arch.spec import ArchSpec, StageSpec
from ev2.models.arch.table import round_channels

# Factors of `grow` by size, in steps of 0.05. Depths: the middle of the factors that
# give S the published numbers of layers. Widths: the factor with the least sum of log
# ratios to the published network, in parameters, in multiply-adds and in the mean over
# stages of channels. Resolution: from 384 px of S to the published 480.
GROWN: Mapping[str, Mapping[str, float]] = {
    "m": {"width": 1.15, "depth": 1.1, "late_depth": 1.5, "resolution": 1.25},
    "l": {"width": 1.45, "depth": 1.6, "late_depth": 2.1, "resolution": 1.25},
}
_MAX_IMAGE_SIZE = 480  # px; paper, section 3.3
# The split-off last stage: its width relative to the stage before, as in V1 (320 to
# 192), and its fraction of the layers, rounded up, as in M and L (5 of 23, 7 of 32).
_SPLIT_WIDTH = 320 / 192
_SPLIT_LAYERS = 0.2


def grow(
    found: ArchSpec, *, width: float, depth: float, late_depth: float, resolution: float
) -> ArchSpec:
    """Returns a larger network of the same name and head.

    Late stages start one stage before the last stage of stride 2: stages 5 and 6 in S.
    If the last stage has stride 2, a fifth of its layers becomes a further stage of
    stride 1 and 5/3 of the width, as in V1, M and L; only added layers move there.

    Args:
        found: a network of MBConv or Fused-MBConv.
        width: factor of the channels of stem and stages, rounded to multiples of 8 as
            in B0 to B3.
        depth: factor of the layers of early stages, rounded up.
        late_depth: factor of the layers of late stages, rounded up.
        resolution: factor of the evaluation size, at most 480 px.

    Raises:
        InputError: a factor is below 1, or `found` is a ResNet.
    """
    depths = {"depth": depth, "late_depth": late_depth}
    _check(found, width=width, resolution=resolution, **depths)
    stem = _widen(found.stem_channels, width)
    stages: list[StageSpec] = []
    for stage, widening in _deepen(found, depth, late_depth):
        before = stages[-1].out_channels if stages else stem
        after = _widen(stage.out_channels, width * widening)
        channels = {"in_channels": before, "out_channels": after}
        stages.append(dataclasses.replace(stage, **channels))
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
    """Returns stages of the new depth and old width, each with a width factor."""
    strided = [i for i, stage in enumerate(found.stages) if stage.stride == 2]
    last = max(strided, default=0)
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

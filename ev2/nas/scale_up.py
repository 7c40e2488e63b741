"""A found network grown to larger ones, as the paper grows S to M and L.

Of the paper: width, depth and resolution are scaled together, later stages such as 5
and 6 get more layers than the others, and no network is evaluated above 480 px. It
gives no coefficients. Ours are the rule and `GROWN`, fitted to the published M and L:
every number of layers is theirs, the widths are as near as one factor brings them: M
and L were made of other widths than S's, L of twice B0's.

Source: paper, section 3.3, "EfficientNetV2 Scaling"; M and L of the released code.

Standard library only.
"""

import dataclasses
import math
from collections.abc import Mapping

from ev2 import errors
from ev2.models.arch.spec import ArchSpec, StageSpec
from ev2.models.arch.table import round_channels

# Factors of `grow` by size. Depths: those in steps of 0.05, or the middle one of them,
# that give S the published numbers of layers. Widths: then the step with the least sum
# of log ratios to the published network, in parameters, in multiply-adds and in the
# mean over stages of channels. Resolution: from S's 384 px to the published 480.
GROWN: Mapping[str, Mapping[str, float]] = {
    "m": {"width": 1.15, "depth": 1.1, "late_depth": 1.5, "resolution": 1.25},
    "l": {"width": 1.45, "depth": 1.6, "late_depth": 2.1, "resolution": 1.25},
}
_MAX_IMAGE_SIZE = 480  # px; paper, section 3.3
# Of the stage that is split off: its width over that of the stage before as in V1's
# table (320 to 192), and its share of the layers, rounded up, as in M and L (5 of 23,
# 7 of 32).
_SPLIT_WIDTH = 320 / 192
_SPLIT_LAYERS = 0.2


def grow(
    found: ArchSpec, *, width: float, depth: float, late_depth: float, resolution: float
) -> ArchSpec:
    """Returns `found` made larger, under the same name and with the same head.

    Stages are late from the one before the last of stride 2: in S the stages 5 and 6.
    If that of stride 2 is the last of all, a fifth of its layers, but none that it had
    before, become one more stage, of stride 1 and 5/3 as wide, as V1, M and L have it.

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
    rows: list[StageSpec] = []
    for row, widening in _deepen(found, depth, late_depth):
        before = rows[-1].out_channels if rows else stem
        after = _widen(row.out_channels, width * widening)
        rows.append(dataclasses.replace(row, in_channels=before, out_channels=after))
    image_size = min(round(found.eval_image_size * resolution), _MAX_IMAGE_SIZE)
    return dataclasses.replace(
        found, stem_channels=stem, stages=tuple(rows), eval_image_size=image_size
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
    """Rows of the new depth, in the old width, each with its own factor to that."""
    last = max((i for i, row in enumerate(found.stages) if row.stride == 2), default=0)
    rows = []
    for index, row in enumerate(found.stages):
        factor = late_depth if index >= last - 1 else depth
        layers = _round_up(row.layers * factor)
        rows.append((dataclasses.replace(row, layers=layers), 1.0))
    row, gained = rows[-1][0], rows[-1][0].layers - found.stages[-1].layers
    split = min(_round_up(_SPLIT_LAYERS * row.layers), gained)
    if row.stride == 2 and split:
        stays = dataclasses.replace(row, layers=row.layers - split)
        new = dataclasses.replace(row, layers=split, stride=1)
        rows[-1:] = [(stays, 1.0), (new, _SPLIT_WIDTH)]
    return rows


def _round_up(layers: float) -> int:
    return math.ceil(layers - 1e-9)  # 25 layers times 2.2 are 55, not 56

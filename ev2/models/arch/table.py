"""The networks by name: their tables, and the rule that scales one into another.

Standard library only.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ev2 import errors
from ev2.models.arch.spec import BOTTLENECK, FUSED_MBCONV, MBCONV, Arch, Row, decode


def list_models() -> list[str]:
    """Returns the names of all networks, sorted."""
    return sorted(_TABLE)


def get(name: str, blocks: Sequence[str] = (), padding: str = "") -> Arch:
    """Returns the network called `name`, with its rows replaced by `blocks` if any.

    Stem, head and evaluation size stay those of `name`; rows are not scaled again.
    `padding` is one of `PADDINGS`, or "" for the network's own.

    Raises:
        InputError: if the name or the padding is unknown, a string malformed, or rows
            do not fit.
    """
    if name not in _TABLE:
        near = difflib.get_close_matches(str(name), _TABLE, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise errors.InputError(
            f"model.name: {name!r} is not known; {hint}choose one of "
            + ", ".join(list_models())
        )
    arch = _TABLE[name]
    return dataclasses.replace(
        arch,
        rows=decode(blocks) if blocks else arch.rows,
        padding=padding or arch.padding,
    )


# fmt: off
# EfficientNetV2-S: paper Table 4. M, L, XL: no table in the paper, the rows are the
# released code's (effnetv2_configs.py v2_m_block, v2_l_block, v2_xl_block).
_V2_S = (  # operator, kernel, expand, stride, channels, layers
    (FUSED_MBCONV, 3, 1, 1,  24,  2),
    (FUSED_MBCONV, 3, 4, 2,  48,  4),
    (FUSED_MBCONV, 3, 4, 2,  64,  4),
    (MBCONV,       3, 4, 2, 128,  6),
    (MBCONV,       3, 6, 1, 160,  9),
    (MBCONV,       3, 6, 2, 256, 15),
)
_V2_M = (
    (FUSED_MBCONV, 3, 1, 1,  24,  3),
    (FUSED_MBCONV, 3, 4, 2,  48,  5),
    (FUSED_MBCONV, 3, 4, 2,  80,  5),
    (MBCONV,       3, 4, 2, 160,  7),
    (MBCONV,       3, 6, 1, 176, 14),
    (MBCONV,       3, 6, 2, 304, 18),
    (MBCONV,       3, 6, 1, 512,  5),
)
_V2_L = (
    (FUSED_MBCONV, 3, 1, 1,  32,  4),
    (FUSED_MBCONV, 3, 4, 2,  64,  7),
    (FUSED_MBCONV, 3, 4, 2,  96,  7),
    (MBCONV,       3, 4, 2, 192, 10),
    (MBCONV,       3, 6, 1, 224, 19),
    (MBCONV,       3, 6, 2, 384, 25),
    (MBCONV,       3, 6, 1, 640,  7),
)
_V2_XL = (
    (FUSED_MBCONV, 3, 1, 1,  32,  4),
    (FUSED_MBCONV, 3, 4, 2,  64,  8),
    (FUSED_MBCONV, 3, 4, 2,  96,  8),
    (MBCONV,       3, 4, 2, 192, 16),
    (MBCONV,       3, 6, 1, 256, 24),
    (MBCONV,       3, 6, 2, 512, 32),
    (MBCONV,       3, 6, 1, 640,  8),
)
# What B0-B3 scale: released code, v2_base_block.
_V2_BASE = (
    (FUSED_MBCONV, 3, 1, 1,  16, 1),
    (FUSED_MBCONV, 3, 4, 2,  32, 2),
    (FUSED_MBCONV, 3, 4, 2,  48, 2),
    (MBCONV,       3, 4, 2,  96, 3),
    (MBCONV,       3, 6, 1, 112, 5),
    (MBCONV,       3, 6, 2, 192, 8),
)
# For the demo and the tests: both kinds of block, quick at 16 to 32 px on a CPU.
_V2_TINY = (
    (FUSED_MBCONV, 3, 1, 1,  16, 1),
    (FUSED_MBCONV, 3, 4, 2,  32, 1),
    (MBCONV,       3, 4, 2,  48, 2),
    (MBCONV,       3, 4, 1,  64, 2),
)
# What V1 B0-B7 scale: EfficientNet (Tan & Le, ICML 2019), Table 1.
_V1_BASE = (
    (MBCONV, 3, 1, 1,  16, 1),
    (MBCONV, 3, 6, 2,  24, 2),
    (MBCONV, 5, 6, 2,  40, 2),
    (MBCONV, 3, 6, 2,  80, 3),
    (MBCONV, 5, 6, 1, 112, 3),
    (MBCONV, 5, 6, 2, 192, 4),
    (MBCONV, 3, 6, 1, 320, 1),
)
# fmt: on


def _chain(stem_channels: int, table: Iterable[tuple]) -> tuple[Row, ...]:
    """Rows of a table: each takes the width of the one before; SE 0.25 in MBConv."""
    rows, width = [], stem_channels
    for operator, kernel, expand, stride, channels, layers in table:
        row = Row(
            operator=operator,
            layers=layers,
            kernel=kernel,
            stride=stride,
            expand=expand,
            in_channels=width,
            out_channels=channels,
            se_ratio=0.25 if operator == MBCONV else 0.0,
        )
        rows.append(row)
        width = channels
    return tuple(rows)


def round_channels(channels: int, width: float, *, at_least_90_percent: bool) -> int:
    """Returns `channels * width` rounded to a multiple of 8, half up, 8 or more.

    With `at_least_90_percent`, a result that lost over a tenth goes up one step. V1
    has that rule and the released V2 code does not: V1 B3's first row is 24 wide and
    V2 B3's is 16.
    """
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    if at_least_90_percent and rounded < 0.9 * scaled:
        rounded += 8
    return rounded


def _scaled(name: str, base: tuple, width: float, depth: float, size: int) -> Arch:
    """Compound scaling: width for stem 32, rows and head 1280, depth for layers."""
    channels = functools.partial(
        round_channels, width=width, at_least_90_percent=base is _V1_BASE
    )
    rows = [(*r[:-2], channels(r[-2]), math.ceil(r[-1] * depth)) for r in base]
    return _fixed(name, channels(32), rows, size, head_channels=channels(1280))


def _lite(name: str, width: float, depth: float, size: int) -> Arch:
    """EfficientNet-Lite: V1 without squeeze-and-excite, with ReLU6 for SiLU.

    Stem, head and the layers of the first and the last row are not scaled.
    """
    scaled = _scaled(name, _V1_BASE, width, depth, size)
    rows = [dataclasses.replace(row, se_ratio=0.0) for row in scaled.rows]
    rows[0] = dataclasses.replace(rows[0], layers=1, in_channels=32)
    rows[-1] = dataclasses.replace(rows[-1], layers=1)
    return dataclasses.replace(
        scaled,
        stem_channels=32,
        rows=tuple(rows),
        head_channels=1280,
        activation="relu6",
    )


def _fixed(
    name: str, stem: int, rows: Iterable[tuple], size: int, **options: Any
) -> Arch:
    return Arch(
        name=name,
        stem_channels=stem,
        rows=_chain(stem, rows),
        eval_image_size=size,
        **{"head_channels": 1280, **options},
    )


def _resnet(name: str, layers: tuple[int, int, int, int]) -> Arch:
    """He et al., CVPR 2016, Table 1; `layers` of conv2_x to conv5_x."""
    widths, strides = (256, 512, 1024, 2048), (1, 2, 2, 2)
    rows = [
        (BOTTLENECK, 3, 4, *row) for row in zip(strides, widths, layers, strict=True)
    ]
    return _fixed(
        name, 64, rows, 224, head_channels=0, activation="relu", padding="symmetric"
    )


# fmt: off
_TABLE = {arch.name: arch for arch in (
    # Name, base, width, depth, evaluation size in px: released code.
    _scaled("efficientnetv2-b0", _V2_BASE, 1.0, 1.0, 224),
    _scaled("efficientnetv2-b1", _V2_BASE, 1.0, 1.1, 240),
    _scaled("efficientnetv2-b2", _V2_BASE, 1.1, 1.2, 260),
    _scaled("efficientnetv2-b3", _V2_BASE, 1.2, 1.4, 300),
    # Name, stem, rows, evaluation size: Table 4 and released code.
    _fixed("efficientnetv2-s",  24, _V2_S,  384),
    _fixed("efficientnetv2-m",  24, _V2_M,  480),
    _fixed("efficientnetv2-l",  32, _V2_L,  480),
    _fixed("efficientnetv2-xl", 32, _V2_XL, 512),
    # Name, base, width, depth, evaluation size: released code of EfficientNet V1.
    _scaled("efficientnet-b0", _V1_BASE, 1.0, 1.0, 224),
    _scaled("efficientnet-b1", _V1_BASE, 1.0, 1.1, 240),
    _scaled("efficientnet-b2", _V1_BASE, 1.1, 1.2, 260),
    _scaled("efficientnet-b3", _V1_BASE, 1.2, 1.4, 300),
    _scaled("efficientnet-b4", _V1_BASE, 1.4, 1.8, 380),
    _scaled("efficientnet-b5", _V1_BASE, 1.6, 2.2, 456),
    _scaled("efficientnet-b6", _V1_BASE, 1.8, 2.6, 528),
    _scaled("efficientnet-b7", _V1_BASE, 2.0, 3.1, 600),
    # Name, width, depth, evaluation size: released code of EfficientNet-Lite.
    _lite("efficientnet-lite0", 1.0, 1.0, 224),
    _lite("efficientnet-lite1", 1.0, 1.1, 240),
    _lite("efficientnet-lite2", 1.1, 1.2, 260),
    _lite("efficientnet-lite3", 1.2, 1.4, 280),
    _lite("efficientnet-lite4", 1.4, 1.8, 300),
    _fixed("efficientnetv2-tiny", 16, _V2_TINY, 28, head_channels=256),  # ours
    _resnet("resnet50",  (3, 4,  6, 3)),
    _resnet("resnet101", (3, 4, 23, 3)),
    _resnet("resnet152", (3, 8, 36, 3)),
)}
# fmt: on

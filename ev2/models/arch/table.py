"""Networks by name: their tables, and compound scaling of one table to another."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ev2 import errors
from ev2.models.arch.spec import (
    BOTTLENECK,
    FUSED_MBCONV,
    MBCONV,
    ArchSpec,
    StageSpec,
    decode,
)


def list_models() -> list[str]:
    """Returns the names of all networks, sorted."""
    return sorted(_TABLE)


def get(name: str, blocks: Sequence[str] = (), padding: str = "") -> ArchSpec:
    """Returns the network called `name`.

    Args:
        name: one of `list_models()`.
        blocks: block strings that replace the stages; () keeps them. Stem, head and
            evaluation size stay.
        padding: one of `PADDINGS`; "" for the network's own.

    Raises:
        InputError: the name or the padding is unknown, a block string is malformed, or
            the stages do not fit.
    """
    if name not in _TABLE:
        near = difflib.get_close_matches(str(name), _TABLE, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise errors.InputError(
            f"model.name: {name!r} is not known; {hint}choose one of "
            + ", ".join(list_models())
        )
    spec = _TABLE[name]
    stages = decode(blocks) if blocks else spec.stages
    return dataclasses.replace(spec, stages=stages, padding=padding or spec.padding)


# fmt: off
# EfficientNetV2-S: paper, Table 4. M, L, XL: released code, effnetv2_configs.py
# (v2_m_block, v2_l_block, v2_xl_block); the paper has no table of them.
_COLUMNS = ("operator", "kernel", "expand", "stride", "out_channels", "layers")
_V2_S = (
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
# The base that B0 to B3 scale: released code, v2_base_block.
_V2_BASE = (
    (FUSED_MBCONV, 3, 1, 1,  16, 1),
    (FUSED_MBCONV, 3, 4, 2,  32, 2),
    (FUSED_MBCONV, 3, 4, 2,  48, 2),
    (MBCONV,       3, 4, 2,  96, 3),
    (MBCONV,       3, 6, 1, 112, 5),
    (MBCONV,       3, 6, 2, 192, 8),
)
# Ours, for the demo and the tests: both kinds of block, fast at 16 to 32 px on a CPU.
_V2_TINY = (
    (FUSED_MBCONV, 3, 1, 1,  16, 1),
    (FUSED_MBCONV, 3, 4, 2,  32, 1),
    (MBCONV,       3, 4, 2,  48, 2),
    (MBCONV,       3, 4, 1,  64, 2),
)
# The base that V1 B0 to B7 scale: EfficientNet (Tan & Le, ICML 2019), Table 1.
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


def round_channels(channels: int, width: float, *, at_least_90_percent: bool) -> int:
    """Returns `channels * width` rounded to a multiple of 8, half up, 8 or more.

    With `at_least_90_percent`, a result that lost over a tenth goes up one step. V1
    has that rule and the released V2 code does not: V1 B3's first stage is 24 wide and
    V2 B3's is 16.
    """
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    if at_least_90_percent and rounded < 0.9 * scaled:
        rounded += 8
    return rounded


def _network(
    name: str, stem: int, table: Iterable[tuple], size: int, **options: Any
) -> ArchSpec:
    """Returns the network of a table; MBConv has squeeze-and-excite of ratio 0.25."""
    stages, width = [], stem
    for row in table:
        columns = dict(zip(_COLUMNS, row, strict=True))
        se_ratio = 0.25 if columns["operator"] == MBCONV else 0.0
        stages.append(StageSpec(**columns, in_channels=width, se_ratio=se_ratio))
        width = columns["out_channels"]
    return ArchSpec(
        name=name,
        stem_channels=stem,
        stages=tuple(stages),
        eval_image_size=size,
        **{"head_channels": 1280, **options},
    )


def _scaled(name: str, base: tuple, width: float, depth: float, size: int) -> ArchSpec:
    """Compound scaling: width for stem 32, stages and head 1280, depth for layers."""
    scale = functools.partial(
        round_channels, width=width, at_least_90_percent=base is _V1_BASE
    )
    table = [(*row[:-2], scale(row[-2]), math.ceil(row[-1] * depth)) for row in base]
    return _network(name, scale(32), table, size, head_channels=scale(1280))


def _lite(name: str, width: float, depth: float, size: int) -> ArchSpec:
    """EfficientNet-Lite: V1 with ReLU6 for SiLU and without squeeze-and-excite.

    Stem, head and the layers of the first and the last stage are not scaled.
    """
    scaled = _scaled(name, _V1_BASE, width, depth, size)
    stages = [dataclasses.replace(stage, se_ratio=0.0) for stage in scaled.stages]
    stages[0] = dataclasses.replace(stages[0], layers=1, in_channels=32)
    stages[-1] = dataclasses.replace(stages[-1], layers=1)
    changes = {"stem_channels": 32, "head_channels": 1280, "activation": "relu6"}
    return dataclasses.replace(scaled, stages=tuple(stages), **changes)


def _resnet(name: str, *layers: int) -> ArchSpec:
    """He et al., CVPR 2016, Table 1; `layers` of conv2_x to conv5_x."""
    options = {"head_channels": 0, "activation": "relu", "padding": "symmetric"}
    rows = zip((1, 2, 2, 2), (256, 512, 1024, 2048), layers, strict=True)
    return _network(name, 64, [(BOTTLENECK, 3, 4, *r) for r in rows], 224, **options)


# fmt: off
# Width, depth and evaluation size (px) of B0 to B7, V1 and V2, and of Lite0 to Lite4:
# released code of each.
_SCALES = (
    (1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 300),
    (1.4, 1.8, 380), (1.6, 2.2, 456), (1.8, 2.6, 528), (2.0, 3.1, 600),
)
_LITE_SCALES = (*_SCALES[:3], (1.2, 1.4, 280), (1.4, 1.8, 300))
_TABLE = {spec.name: spec for spec in (
    *(_scaled(f"efficientnetv2-b{i}", _V2_BASE, *s) for i, s in enumerate(_SCALES[:4])),
    # Name, stem, table, evaluation size: Table 4 and released code.
    _network("efficientnetv2-s",  24, _V2_S,  384),
    _network("efficientnetv2-m",  24, _V2_M,  480),
    _network("efficientnetv2-l",  32, _V2_L,  480),
    _network("efficientnetv2-xl", 32, _V2_XL, 512),
    *(_scaled(f"efficientnet-b{i}", _V1_BASE, *s) for i, s in enumerate(_SCALES)),
    *(_lite(f"efficientnet-lite{i}", *s) for i, s in enumerate(_LITE_SCALES)),
    _network("efficientnetv2-tiny", 16, _V2_TINY, 28, head_channels=256),  # ours
    _resnet("resnet50",  3, 4,  6, 3),
    _resnet("resnet101", 3, 4, 23, 3),
    _resnet("resnet152", 3, 8, 36, 3),
)}
# fmt: on

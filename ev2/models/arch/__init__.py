"""Architectures as data: tables of stages, their block strings and their cost.

A `StageSpec` is one stage of a table such as the paper's Table 4; an `ArchSpec` is a
stem, stages and a head. Block strings are the notation of the released code and of
architecture search: `decode(encode(stages)) == stages` for every network.

Standard library only.
"""

from ev2.models.arch.cost import count_multiply_adds, count_params
from ev2.models.arch.spec import (
    BOTTLENECK,
    BOTTLENECK_V1,
    DTYPES,
    FUSED_MBCONV,
    MBCONV,
    PADDINGS,
    ArchSpec,
    StageSpec,
    decode,
    encode,
)
from ev2.models.arch.table import get, list_models, round_channels

__all__ = [
    "BOTTLENECK",
    "BOTTLENECK_V1",
    "DTYPES",
    "FUSED_MBCONV",
    "MBCONV",
    "PADDINGS",
    "ArchSpec",
    "StageSpec",
    "count_multiply_adds",
    "count_params",
    "decode",
    "encode",
    "get",
    "list_models",
    "round_channels",
]

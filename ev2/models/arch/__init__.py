"""Architectures as rows of a table: what each network is, with nothing to run.

A `Row` is one line of such a table ("stage" in the paper), an `Arch` is a stem, rows
and a head. Rows can also be written as block strings, the language of architecture
search and of the released code: `decode(encode(rows)) == rows` for every network.

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
    Arch,
    Row,
    decode,
    encode,
)
from ev2.models.arch.table import get, list_models, round_channels
from ev2.nas.scale_up import format_growth, grow

__all__ = [
    "BOTTLENECK",
    "BOTTLENECK_V1",
    "FUSED_MBCONV",
    "MBCONV",
    "DTYPES",
    "PADDINGS",
    "Arch",
    "Row",
    "count_multiply_adds",
    "count_params",
    "decode",
    "encode",
    "format_growth",
    "get",
    "grow",
    "list_models",
    "round_channels",
]

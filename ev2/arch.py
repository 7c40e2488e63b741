"""Architectures as rows of a table: what each network is, with nothing to run.

A `Row` is one line of such a table ("stage" in the paper), an `Arch` is a stem, rows
and a head. Rows can also be written as block strings, the language of architecture
search and of the released code: `decode(encode(rows)) == rows` for every network.

Standard library only.
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Iterable, Sequence

from ev2 import errors

MBCONV = "mbconv"
FUSED_MBCONV = "fused_mbconv"
BOTTLENECK = "bottleneck"

# In this order block strings number them: the first two as the released code does
# (`conv_type`), the third is ours.
_OPERATORS = (MBCONV, FUSED_MBCONV, BOTTLENECK)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of an architecture table: `layers` blocks of one kind.

    The first block has `stride` and maps `in_channels` to `out_channels`; the
    others have stride 1 and keep the width.

    Attributes:
        operator: `MBCONV`, `FUSED_MBCONV` or `BOTTLENECK` (ResNet).
        layers: number of blocks, at least 1.
        kernel: side of the spatial convolution in pixels, odd.
        stride: 1 or 2.
        expand: hidden width over input width; in a bottleneck, output over hidden.
        in_channels: width of what enters the first block.
        out_channels: width of what leaves every block.
        se_ratio: squeeze-and-excite width over input width, in [0, 1]; 0 for none.

    Raises:
        InputError: if a value is outside its range.
    """

    operator: str
    layers: int
    kernel: int
    stride: int
    expand: int
    in_channels: int
    out_channels: int
    se_ratio: float = 0.0

    def __post_init__(self) -> None:
        for key in ("layers", "expand", "in_channels", "out_channels"):
            self._check(key, getattr(self, key) >= 1, "1 or more")
        self._check("operator", self.operator in _OPERATORS, ", ".join(_OPERATORS))
        self._check("kernel", self.kernel % 2 == 1, "an odd number")
        self._check("stride", self.stride in (1, 2), "1 or 2")
        self._check("se_ratio", 0 <= self.se_ratio <= 1, "from 0 to 1")
        if self.operator == BOTTLENECK:
            self._check("se_ratio", self.se_ratio == 0, "0 in a bottleneck")
            whole = self.out_channels % self.expand == 0
            self._check("expand", whole, f"a divisor of {self.out_channels}")

    def _check(self, key: str, good: bool, allowed: str) -> None:
        if not good:
            value = getattr(self, key)
            raise errors.InputError(f"{key} {value} is not allowed; use {allowed}")

    @property
    def se_channels(self) -> int:
        """Squeeze-and-excite width of the first block; 0 for none."""
        return max(1, int(self.in_channels * self.se_ratio)) if self.se_ratio else 0

    @property
    def hidden_channels(self) -> int:
        """Width of the spatial convolution in the first block."""
        if self.operator == BOTTLENECK:
            return self.out_channels // self.expand
        return self.in_channels * self.expand

    @property
    def blocks(self) -> tuple["Row", ...]:
        """The blocks in order, each as a row of one layer."""
        first = dataclasses.replace(self, layers=1)
        later = dataclasses.replace(first, stride=1, in_channels=self.out_channels)
        return (first,) + (later,) * (self.layers - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arch:
    """A network: stem, rows, head. What the rows do not say is in `ev2.models`.

    Attributes:
        name: as in `list_models`.
        stem_channels: width of the first convolution, of stride 2.
        rows: at least one, each starting at the width the one before ends with.
        head_channels: width of the last 1x1 convolution; 0 for none (ResNet).
        eval_image_size: side in pixels the network is evaluated at by default.

    Raises:
        InputError: if the rows do not chain or mix bottlenecks with others.
    """

    name: str
    stem_channels: int
    rows: tuple[Row, ...]
    head_channels: int
    eval_image_size: int

    def __post_init__(self) -> None:
        width = self.stem_channels
        for index, row in enumerate(self.rows):
            where = f"model.blocks[{index}] {_encode_row(row)!r}"
            if row.in_channels != width:
                before = f"model.blocks[{index - 1}]" if index else "stem"
                raise errors.InputError(
                    f"{where}: i{row.in_channels} is not the width that the {before} "
                    f"of {self.name} ends with; use i{width}"
                )
            if (row.operator == BOTTLENECK) != self.is_resnet:
                allowed = "c2 (bottleneck)" if self.is_resnet else "c0 or c1 (MBConv)"
                raise errors.InputError(
                    f"{where}: {row.operator} does not fit {self.name}; use {allowed}"
                )
            width = row.out_channels

    @property
    def is_resnet(self) -> bool:
        """Whether this is a ResNet: bottlenecks, and no convolution in the head."""
        return self.head_channels == 0

    @property
    def num_blocks(self) -> int:
        """Blocks in all rows together: what stochastic depth counts over."""
        return sum(row.layers for row in self.rows)

    @property
    def named_blocks(self) -> tuple[tuple[str, Row], ...]:
        """All blocks in order, as `("stage1_block0", row of one layer)` and so on."""
        return tuple(
            (f"stage{r}_block{b}", block)
            for r, row in enumerate(self.rows, start=1)
            for b, block in enumerate(row.blocks)
        )


def list_models() -> list[str]:
    """Returns the names of all networks, sorted."""
    return sorted(_TABLE)


def get(name: str, blocks: Sequence[str] = ()) -> Arch:
    """Returns the network called `name`, with its rows replaced by `blocks` if any.

    Stem, head and evaluation size stay those of `name`; rows are not scaled again.

    Raises:
        InputError: if the name is unknown, a string malformed, or rows do not fit.
    """
    if name not in _TABLE:
        near = difflib.get_close_matches(str(name), _TABLE, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise errors.InputError(
            f"model.name: {name!r} is not known; {hint}choose one of "
            + ", ".join(list_models())
        )
    arch = _TABLE[name]
    return dataclasses.replace(arch, rows=decode(blocks)) if blocks else arch


_TOKEN = re.compile(r"([rkseio])(\d+)|(se)(\d+(?:\.\d+)?(?:e-\d+)?)|(c)([012])")
_FIELDS = {
    **{"r": "layers", "k": "kernel", "s": "stride", "e": "expand"},
    **{"i": "in_channels", "o": "out_channels", "se": "se_ratio", "c": "operator"},
}


def encode(rows: Iterable[Row]) -> tuple[str, ...]:
    """Returns one block string per row, such as `r4_k3_s2_e4_i24_o48_c1`.

    Tokens are joined by `_`, each a key and a number, each key once:

        r  layers             k  kernel side, px     s  stride
        e  expand ratio       i  input channels      o  output channels
        se squeeze-and-excite ratio (default 0)
        c  operator: 0 MBConv (default), 1 Fused-MBConv, 2 ResNet bottleneck

    Source: released code, effnetv2_configs.py. Differs: c2 is ours.
    """
    return tuple(_encode_row(row) for row in rows)


def _encode_row(row: Row) -> str:
    string = (
        f"r{row.layers}_k{row.kernel}_s{row.stride}_e{row.expand}"
        f"_i{row.in_channels}_o{row.out_channels}"
    )
    if row.se_ratio:
        string += f"_se{row.se_ratio!r}"
    if row.operator != MBCONV:
        string += f"_c{_OPERATORS.index(row.operator)}"
    return string


def decode(strings: Iterable[str]) -> tuple[Row, ...]:
    """Returns the rows that `strings` describe; InputError names a bad token."""
    return tuple(_decode_row(i, string) for i, string in enumerate(strings))


def _decode_row(index: int, string: str) -> Row:
    where = f"model.blocks[{index}] {string!r}"
    values = {}
    for token in str(string).split("_"):
        match = _TOKEN.fullmatch(token)
        if not match:
            raise errors.InputError(
                f"{where}: {token!r} is no token; use r, k, s, e, i, o with a whole "
                "number, se with a ratio, c with 0, 1 or 2: r4_k3_s2_e4_i24_o48_c1"
            )
        key, number = filter(None, match.groups())
        if key in values:
            raise errors.InputError(f"{where}: {token!r} repeats {key}; give it once")
        values[key] = float(number) if key == "se" else int(number)
    missing = [key for key in "rkseio" if key not in values]
    if missing:
        raise errors.InputError(
            f"{where}: {', '.join(missing)} missing; only se and c may be left out"
        )
    values["c"] = _OPERATORS[values.get("c", 0)]
    try:
        return Row(**{_FIELDS[key]: value for key, value in values.items()})
    except errors.InputError as error:
        raise errors.InputError(f"{where}: {error}") from None


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


def _fixed(
    name: str, stem: int, rows: Iterable[tuple], size: int, *, head_channels: int = 1280
) -> Arch:
    return Arch(
        name=name,
        stem_channels=stem,
        rows=_chain(stem, rows),
        head_channels=head_channels,
        eval_image_size=size,
    )


def _resnet(name: str, layers: tuple[int, int, int, int]) -> Arch:
    """He et al., CVPR 2016, Table 1; `layers` of conv2_x to conv5_x."""
    widths, strides = (256, 512, 1024, 2048), (1, 2, 2, 2)
    rows = [
        (BOTTLENECK, 3, 4, *row) for row in zip(strides, widths, layers, strict=True)
    ]
    return _fixed(name, 64, rows, 224, head_channels=0)


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
    _fixed("efficientnetv2-tiny", 16, _V2_TINY, 28, head_channels=256),  # ours
    _resnet("resnet50",  (3, 4,  6, 3)),
    _resnet("resnet101", (3, 4, 23, 3)),
    _resnet("resnet152", (3, 8, 36, 3)),
)}
# fmt: on

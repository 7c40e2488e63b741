"""Specification of a network, `StageSpec` and `ArchSpec`, and its block strings."""

import dataclasses
import re
from collections.abc import Iterable

from ev2 import errors

# In the order of their numbers in block strings: two of the released code, two of ours.
_OPERATORS = ("mbconv", "fused_mbconv", "bottleneck", "bottleneck_v1")
MBCONV, FUSED_MBCONV, BOTTLENECK, BOTTLENECK_V1 = _OPERATORS

# "same" is TensorFlow's padding: an odd pixel goes to the bottom and the right.
# "symmetric" is PyTorch's: kernel // 2 on every side. They differ at stride 2.
PADDINGS = ("same", "symmetric")
DTYPES = ("float32", "bfloat16")  # compute dtypes


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSpec:
    """A stage of a network: `layers` blocks of one kind.

    The first block has `stride` and maps `in_channels` to `out_channels`; later blocks
    have stride 1 and keep the width. A single block is a stage of one layer.

    Attributes:
        operator: `MBCONV`, `FUSED_MBCONV`, `BOTTLENECK` (ResNet, the stride in its
            3x3) or `BOTTLENECK_V1` (the stride in its first 1x1).
        layers: number of blocks, at least 1.
        kernel: side of the spatial convolution in pixels, odd.
        stride: 1 or 2.
        expand: hidden width over input width; in a bottleneck, output over hidden.
        in_channels: input width of the first block.
        out_channels: output width of every block.
        se_ratio: squeeze-and-excite width over input width, in [0, 1]; 0 for none.

    Raises:
        InputError: a value is outside its range.
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
        if self.is_bottleneck:
            self._check("se_ratio", self.se_ratio == 0, "0 in a bottleneck")
            divides = self.out_channels % self.expand == 0
            self._check("expand", divides, f"a divisor of {self.out_channels}")

    def _check(self, key: str, valid: bool, allowed: str) -> None:
        if not valid:
            value = getattr(self, key)
            raise errors.InputError(f"{key} {value} is not allowed; use {allowed}")

    @property
    def is_bottleneck(self) -> bool:
        """True for the blocks of a ResNet."""
        return self.operator in (BOTTLENECK, BOTTLENECK_V1)

    @property
    def has_skip(self) -> bool:
        """True if the first block adds its input, unchanged, to its output."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def se_channels(self) -> int:
        """Squeeze-and-excite width of the first block; 0 for none."""
        return max(1, int(self.in_channels * self.se_ratio)) if self.se_ratio else 0

    @property
    def hidden_channels(self) -> int:
        """Width of the spatial convolution in the first block."""
        if self.is_bottleneck:
            return self.out_channels // self.expand
        return self.in_channels * self.expand

    @property
    def blocks(self) -> tuple["StageSpec", ...]:
        """The blocks in order."""
        first = dataclasses.replace(self, layers=1)
        later = dataclasses.replace(first, stride=1, in_channels=self.out_channels)
        return (first,) + (later,) * (self.layers - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchSpec:
    """A network: stem, stages, head.

    Attributes:
        name: as in `list_models`.
        stem_channels: width of the first convolution, of stride 2.
        stages: at least one; the input width of each is the output width before it.
        head_channels: width of the last 1x1 convolution; 0 for none (ResNet).
        eval_image_size: default image size of evaluation, px.
        activation: "silu", "relu6" (EfficientNet-Lite) or "relu" (ResNet).
        padding: one of `PADDINGS`.

    Raises:
        InputError: the widths of stages do not match, bottlenecks are mixed with
            other blocks, or the padding is unknown.
    """

    name: str
    stem_channels: int
    stages: tuple[StageSpec, ...]
    head_channels: int
    eval_image_size: int
    activation: str = "silu"
    padding: str = "same"

    def __post_init__(self) -> None:
        errors.check_choice("model.padding", self.padding, PADDINGS)
        width, before = self.stem_channels, "stem"
        for index, stage in enumerate(self.stages):
            key = f"model.blocks[{index}]"
            where = f"{key} {encode([stage])[0]!r}"
            if stage.in_channels != width:
                raise errors.InputError(
                    f"{where}: i{stage.in_channels} is not the width that the {before} "
                    f"of {self.name} ends with; use i{width}"
                )
            if stage.is_bottleneck != self.is_resnet:
                allowed = "c2 or c3" if self.is_resnet else "c0 or c1 (MBConv)"
                raise errors.InputError(
                    f"{where}: {stage.operator} does not fit {self.name}; use {allowed}"
                )
            width, before = stage.out_channels, key

    @property
    def is_resnet(self) -> bool:
        """True for a ResNet: bottlenecks, and a head without convolution."""
        return self.head_channels == 0

    @property
    def num_blocks(self) -> int:
        """Number of blocks in all stages, over which stochastic depth ramps up."""
        return sum(stage.layers for stage in self.stages)

    @property
    def named_blocks(self) -> tuple[tuple[str, StageSpec], ...]:
        """All blocks in order by name: "stage1_block0" and so on."""
        return tuple(
            (f"stage{s}_block{b}", block)
            for s, stage in enumerate(self.stages, start=1)
            for b, block in enumerate(stage.blocks)
        )


_TOKEN = re.compile(r"([rkseio])(\d+)|(se)(\d+(?:\.\d+)?(?:e-\d+)?)|(c)([0123])")
_FIELDS = {
    **{"r": "layers", "k": "kernel", "s": "stride", "e": "expand"},
    **{"i": "in_channels", "o": "out_channels", "se": "se_ratio", "c": "operator"},
}


def encode(stages: Iterable[StageSpec]) -> tuple[str, ...]:
    """Returns one block string per stage, such as `r4_k3_s2_e4_i24_o48_c1`.

    Tokens are joined by `_`, each a key and a number, each key once:

        r  layers             k  kernel side, px     s  stride
        e  expand ratio       i  input channels      o  output channels
        se squeeze-and-excite ratio (default 0)
        c  operator: 0 MBConv (default), 1 Fused-MBConv, 2 ResNet bottleneck,
           3 the same with its stride in the first 1x1

    Source: released code, effnetv2_configs.py. Differs: c2 and c3 are ours.
    """
    strings = []
    for stage in stages:
        string = f"r{stage.layers}_k{stage.kernel}_s{stage.stride}_e{stage.expand}"
        string += f"_i{stage.in_channels}_o{stage.out_channels}"
        string += f"_se{stage.se_ratio!r}" if stage.se_ratio else ""
        operator = _OPERATORS.index(stage.operator)
        strings.append(string + (f"_c{operator}" if operator else ""))
    return tuple(strings)


def decode(strings: Iterable[str]) -> tuple[StageSpec, ...]:
    """Returns the stages of block strings; InputError names a bad token."""
    return tuple(_decode_stage(i, string) for i, string in enumerate(strings))


def _decode_stage(index: int, string: str) -> StageSpec:
    where = f"model.blocks[{index}] {string!r}"
    values = {}
    for token in str(string).split("_"):
        match = _TOKEN.fullmatch(token)
        if not match:
            raise errors.InputError(
                f"{where}: {token!r} is not a token; use r, k, s, e, i, o with a whole "
                "number, se with a ratio, c with 0, 1, 2 or 3: r4_k3_s2_e4_i24_o48_c1"
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
        return StageSpec(**{_FIELDS[key]: value for key, value in values.items()})
    except errors.InputError as error:
        raise errors.InputError(f"{where}: {error}") from None

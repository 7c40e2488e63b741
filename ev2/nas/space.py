"""The networks that a search chooses among: one of the table, changed stage by stage.

Choices of a stage: MBConv or Fused-MBConv, number of layers, kernel, expand ratio.
Strides, channels, stem and head are the backbone's. Layers are the backbone's plus an
offset, so that all networks have a similar size. With several backbones the first
choice is among them: an extension in which EfficientNetV2-S and V1-B4 are points of one
space.

A candidate is a dict of choices. Different dicts may mean the same network (an offset
that would leave no layer leaves one; stages that the backbone lacks are ignored), so
candidates are compared by their text, `Space.encode`.

Source: paper, section 3.2. Squeeze-and-excite 0.25 in MBConv, none in Fused-MBConv, as
Table 4; the paper does not say which numbers of layers it tries.

Standard library only.
"""

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ev2 import errors
from ev2.models import arch

_CHOICES = ("operator", "layers", "kernel", "expand")  # of a stage
OPERATORS = (arch.MBCONV, arch.FUSED_MBCONV)
_SE_RATIO = 0.25  # of MBConv
MAX_DRAWS = 10_000  # before a space counts as without networks within its bounds

Candidate = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """A search space.

    Attributes:
        backbones: names of networks of MBConv or Fused-MBConv, one or more.
        operators: of `OPERATORS`, for every stage.
        layers: offsets to the backbone's number of layers.
        kernels: odd sides in pixels.
        expands: ratios, 1 or more.
        min_params: fewest parameters of a network, 0 for any.
        max_params: most, 0 for any.
        num_classes: with which they are counted.

    Raises:
        InputError: a value is not allowed.
    """

    backbones: tuple[str, ...]
    operators: tuple[str, ...] = OPERATORS
    layers: tuple[int, ...] = (-2, -1, 0, 1, 2)
    kernels: tuple[int, ...] = (3, 5)
    expands: tuple[int, ...] = (1, 4, 6)
    min_params: int = 0
    max_params: int = 0
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for key in ("backbones", "operators", "layers", "kernels", "expands"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise errors.InputError(
                    f"space.{key}: {values!r} is not allowed; give values, each once"
                )
        for name in self.backbones:
            errors.check_choice("space.backbones", name, arch.list_models())
            if arch.get(name).is_resnet:
                raise errors.InputError(
                    f"space.backbones: {name} is a ResNet, of other blocks; give "
                    "EfficientNets"
                )
        for operator in self.operators:
            errors.check_choice("space.operators", operator, OPERATORS)
        self._check_numbers("kernels", "odd numbers", lambda n: n > 0 and n % 2 == 1)
        self._check_numbers("expands", "whole numbers, 1 or more", lambda n: n > 0)
        self._check_numbers("layers", "whole numbers, as -1, 0, 1", lambda n: True)
        if self.max_params and self.min_params > self.max_params:
            raise errors.InputError(
                f"space.min_params: {self.min_params:,} is not allowed; give at most "
                f"max_params, which is {self.max_params:,}"
            )

    def _check_numbers(self, key: str, allowed: str, good) -> None:
        for value in getattr(self, key):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not good(value):
                raise errors.InputError(
                    f"space.{key}: {value!r} is not allowed; give {allowed}"
                )

    @functools.cached_property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Values of each choice, by its name, in a fixed order."""
        stages = max(len(arch.get(name).stages) for name in self.backbones)
        backbone = {"backbone": self.backbones} if len(self.backbones) > 1 else {}
        return backbone | {
            f"stage{stage}_{key}": values
            for stage in range(1, stages + 1)
            for key, values in zip(
                _CHOICES,
                (self.operators, self.layers, self.kernels, self.expands),
                strict=True,
            )
        }

    def size(self) -> int:
        """Returns the number of different networks, within the bounds or not."""
        total = 0
        for name in self.backbones:
            product = 1
            for row in arch.get(name).stages:
                layers = {max(1, row.layers + offset) for offset in self.layers}
                product *= len(layers) * len(self.operators)
                product *= len(self.kernels) * len(self.expands)
            total += product
        return total

    def count_valid(self, most: int | None = None) -> int:
        """Returns the number of networks within the bounds, at most `most`.

        They are counted one by one.
        """
        valid = (1 for candidate in self._all() if self.is_valid(candidate))
        return sum(itertools.islice(valid, most))

    def _all(self) -> Iterator[Candidate]:
        """Yields every network once; choices that its backbone lacks are arbitrary."""
        rest = {key: values[0] for key, values in self.choices.items()}
        for name in self.backbones:
            own = {"backbone": name} if "backbone" in rest else {}
            stages = []
            for stage, row in enumerate(arch.get(name).stages, 1):
                # Of offsets that give as many layers, one.
                offsets = {max(1, row.layers + n): n for n in self.layers}.values()
                kinds = itertools.product(
                    self.operators, offsets, self.kernels, self.expands
                )
                keys = [f"stage{stage}_{key}" for key in _CHOICES]
                stages.append([dict(zip(keys, kind, strict=True)) for kind in kinds])
            for chosen in itertools.product(*stages):
                yield rest | own | {k: v for one in chosen for k, v in one.items()}

    def backbone(self, candidate: Mapping[str, Any]) -> str:
        """The name of the network that a candidate varies."""
        return candidate.get("backbone", self.backbones[0])

    def to_arch(self, candidate: Mapping[str, Any]) -> arch.ArchSpec:
        """Returns the network of a candidate, under the name of its backbone."""
        base = arch.get(self.backbone(candidate))
        rows = []
        for stage, row in enumerate(base.stages, 1):
            chosen = functools.partial(_look_up, candidate, stage)
            operator = chosen("operator")
            changed = dataclasses.replace(
                row,
                operator=operator,
                layers=max(1, row.layers + chosen("layers")),
                kernel=chosen("kernel"),
                expand=chosen("expand"),
                se_ratio=_SE_RATIO if operator == arch.MBCONV else 0.0,
            )
            rows.append(changed)
        return dataclasses.replace(base, stages=tuple(rows))

    def encode(self, candidate: Mapping[str, Any]) -> str:
        """Returns the unique text of the network: backbone, then block strings.

        As `efficientnetv2-tiny:r1_k3_s1_e1_i16_o16_c1,r1_k3_s2_e4_i16_o32_c1,...`.
        """
        found = self.to_arch(candidate)
        return f"{found.name}:{','.join(arch.encode(found.stages))}"

    def decode(self, text: str) -> Candidate:
        """Returns a candidate of which `encode` returns this text.

        Raises:
            InputError: it is not the text of a network of this space.
        """
        name, _, blocks = text.partition(":")
        errors.check_choice("arch: backbone", name, self.backbones)
        base, rows = arch.get(name), arch.decode(blocks.split(","))
        candidate = {key: values[0] for key, values in self.choices.items()}
        if "backbone" in candidate:
            candidate["backbone"] = name
        for stage, (row, own) in enumerate(zip(rows, base.stages, strict=False), 1):
            candidate |= {
                f"stage{stage}_operator": row.operator,
                f"stage{stage}_kernel": row.kernel,
                f"stage{stage}_expand": row.expand,
                f"stage{stage}_layers": self._offset(row.layers, own.layers),
            }
        outside = any(
            candidate[key] not in values for key, values in self.choices.items()
        )
        if outside or self.encode(candidate) != text:
            raise errors.InputError(f"arch: {text!r} is not a network of this space")
        return candidate

    def _offset(self, layers: int, base: int) -> int | None:
        """Returns the largest offset that gives so many layers, None without one."""
        fitting = [n for n in self.layers if max(1, base + n) == layers]
        return max(fitting, default=None)

    def count_params(self, candidate: Mapping[str, Any]) -> int:
        """Returns the trainable parameters of a candidate."""
        return arch.count_params(self.to_arch(candidate), self.num_classes)

    def is_valid(self, candidate: Mapping[str, Any]) -> bool:
        """Whether the number of a candidate's parameters is within the bounds."""
        params = self.count_params(candidate)
        return self.min_params <= params <= (self.max_params or math.inf)

    def sample(self, rng: random.Random) -> Candidate:
        """Returns a valid candidate, every choice drawn evenly.

        Raises:
            InputError: 10,000 draws have given none.
        """
        for _ in range(MAX_DRAWS):
            candidate = {key: rng.choice(v) for key, v in self.choices.items()}
            if self.is_valid(candidate):
                return candidate
        raise errors.InputError(
            f"space: none of {MAX_DRAWS:,} networks drawn from it has "
            f"{self._describe_bounds()} parameters; widen the bounds or the choices"
        )

    def mutate(self, candidate: Mapping[str, Any], rng: random.Random) -> Candidate:
        """Returns a valid candidate that differs in one choice and is another network.

        If a hundred tries find none, two choices are changed, then three and so on.
        A space of one valid network gives that one again.
        """
        before = self.encode(candidate)
        open_choices = [key for key, values in self.choices.items() if len(values) > 1]
        for number in range(MAX_DRAWS if open_choices else 0):
            changed = dict(candidate)
            for _ in range(1 + number // 100):
                key = rng.choice(open_choices)
                changed[key] = rng.choice(self.choices[key])
            if self.encode(changed) != before and self.is_valid(changed):
                return changed
        return self.sample(rng)

    def _describe_bounds(self) -> str:
        most = f"{self.max_params:,}" if self.max_params else "any number of"
        return f"{self.min_params:,} to {most}"


def _look_up(candidate: Mapping[str, Any], stage: int, key: str) -> Any:
    return candidate[f"stage{stage}_{key}"]


def describe(space: Space, candidate: Mapping[str, Any]) -> Sequence[str]:
    """Returns the stages as papers write them: `Fused-MBConv4 k3x3, 48, x2`."""
    names = {arch.MBCONV: "MBConv", arch.FUSED_MBCONV: "Fused-MBConv"}
    return [
        f"{names[row.operator]}{row.expand} k{row.kernel}x{row.kernel}, "
        f"{row.out_channels}, x{row.layers}"
        for row in space.to_arch(candidate).stages
    ]

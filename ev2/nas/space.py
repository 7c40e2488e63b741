"""Defines the networks of a search: a published one, changed stage by stage.

Choices of a stage: MBConv or Fused-MBConv, number of layers, kernel, expand ratio. The
backbone fixes strides, channels, stem and head. The number of layers is the backbone's
plus an offset, so that all networks have a similar size. With several backbones the
first choice is the backbone: an extension in which EfficientNetV2-S and V1-B4 are
points of one space.

A candidate is a dict of choices. Different dicts may give the same network (a stage has
at least one layer; stages that the backbone lacks are ignored), so candidates are
compared by their text, `Space.encode`.

Source: paper, section 3.2. Squeeze-and-excite is 0.25 in MBConv and absent in
Fused-MBConv, as in Table 4; the paper does not list its numbers of layers.

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
MAX_DRAWS = 10_000  # before a space counts as empty

Candidate = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """A search space.

    Attributes:
        backbones: names of networks of MBConv or Fused-MBConv, one or more.
        operators: of `OPERATORS`, the same for every stage.
        layers: offsets to the backbone's number of layers.
        kernels: odd sides in pixels.
        expands: ratios, 1 or more.
        min_params: fewest parameters of a network, 0 for any.
        max_params: most parameters, 0 for any.
        num_classes: classes of the counted networks.

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

    def _check_numbers(self, key: str, allowed: str, is_allowed) -> None:
        for value in getattr(self, key):
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not is_whole or not is_allowed(value):
                raise errors.InputError(
                    f"space.{key}: {value!r} is not allowed; give {allowed}"
                )

    @functools.cached_property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Returns the values of each choice by name, in a fixed order."""
        stages = max(len(arch.get(name).stages) for name in self.backbones)
        backbone = {"backbone": self.backbones} if len(self.backbones) > 1 else {}
        values = (self.operators, self.layers, self.kernels, self.expands)
        return backbone | {
            f"stage{stage}_{key}": of_stage
            for stage in range(1, stages + 1)
            for key, of_stage in zip(_CHOICES, values, strict=True)
        }

    def size(self) -> int:
        """Returns the number of different networks, within the bounds or not."""
        total = 0
        for name in self.backbones:
            choices = len(self.operators) * len(self.kernels) * len(self.expands)
            total += math.prod(
                choices * len({max(1, stage.layers + offset) for offset in self.layers})
                for stage in arch.get(name).stages
            )
        return total

    def count_valid(self, most: int | None = None) -> int:
        """Counts the networks within the bounds one by one, up to `most`."""
        valid = (1 for candidate in self._all() if self.is_valid(candidate))
        return sum(itertools.islice(valid, most))

    def _all(self) -> Iterator[Candidate]:
        """Yields every network once; stages that the backbone lacks have any values."""
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
        """Returns the name of the network that a candidate varies."""
        return candidate.get("backbone", self.backbones[0])

    def to_arch(self, candidate: Mapping[str, Any]) -> arch.ArchSpec:
        """Returns the network of a candidate, under the name of its backbone."""
        base = arch.get(self.backbone(candidate))
        stages = []
        for number, stage in enumerate(base.stages, 1):
            chosen = {key: candidate[f"stage{number}_{key}"] for key in _CHOICES}
            chosen["layers"] = max(1, stage.layers + chosen["layers"])
            se_ratio = _SE_RATIO if chosen["operator"] == arch.MBCONV else 0.0
            stages.append(dataclasses.replace(stage, se_ratio=se_ratio, **chosen))
        return dataclasses.replace(base, stages=tuple(stages))

    def encode(self, candidate: Mapping[str, Any]) -> str:
        """Returns the unique text of the network: backbone, then block strings.

        Such as `efficientnetv2-tiny:r1_k3_s1_e1_i16_o16_c1,r1_k3_s2_e4_i16_o32_c1,...`.
        """
        network = self.to_arch(candidate)
        return f"{network.name}:{','.join(arch.encode(network.stages))}"

    def decode(self, text: str) -> Candidate:
        """Returns a candidate whose `encode` is this text.

        Raises:
            InputError: the space has no such network.
        """
        name, _, blocks = text.partition(":")
        errors.check_choice("arch: backbone", name, self.backbones)
        base, rows = arch.get(name), arch.decode(blocks.split(","))
        candidate = {key: values[0] for key, values in self.choices.items()}
        if "backbone" in candidate:
            candidate["backbone"] = name
        for stage, (row, own) in enumerate(zip(rows, base.stages, strict=False), 1):
            offsets = [n for n in self.layers if max(1, own.layers + n) == row.layers]
            candidate |= {
                f"stage{stage}_operator": row.operator,
                f"stage{stage}_kernel": row.kernel,
                f"stage{stage}_expand": row.expand,
                f"stage{stage}_layers": max(offsets, default=None),
            }
        inside = all(candidate[key] in values for key, values in self.choices.items())
        if not inside or self.encode(candidate) != text:
            raise errors.InputError(f"arch: {text!r} is not a network of this space")
        return candidate

    def count_params(self, candidate: Mapping[str, Any]) -> int:
        """Returns the trainable parameters of a candidate."""
        return arch.count_params(self.to_arch(candidate), self.num_classes)

    def is_valid(self, candidate: Mapping[str, Any]) -> bool:
        """Returns True if the candidate's parameters are within the bounds."""
        params = self.count_params(candidate)
        return self.min_params <= params <= (self.max_params or math.inf)

    def sample(self, rng: random.Random) -> Candidate:
        """Returns a valid candidate, every choice drawn evenly.

        Raises:
            InputError: none of 10,000 draws is valid.
        """
        for _ in range(MAX_DRAWS):
            candidate = {key: rng.choice(v) for key, v in self.choices.items()}
            if self.is_valid(candidate):
                return candidate
        most = f"{self.max_params:,}" if self.max_params else "any number of"
        raise errors.InputError(
            f"space: none of {MAX_DRAWS:,} networks drawn from it has "
            f"{self.min_params:,} to {most} parameters; widen the bounds or the choices"
        )

    def mutate(self, candidate: Mapping[str, Any], rng: random.Random) -> Candidate:
        """Returns a valid candidate that differs in one choice and is another network.

        After a hundred attempts two choices are changed, then three, and so on. A space
        of one valid network returns that network.
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


def describe(space: Space, candidate: Mapping[str, Any]) -> Sequence[str]:
    """Returns the stages in the notation of papers: `Fused-MBConv4 k3x3, 48, x2`."""
    names = {arch.MBCONV: "MBConv", arch.FUSED_MBCONV: "Fused-MBConv"}
    return [
        f"{names[row.operator]}{row.expand} k{row.kernel}x{row.kernel}, "
        f"{row.out_channels}, x{row.layers}"
        for row in space.to_arch(candidate).stages
    ]

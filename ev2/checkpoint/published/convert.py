"""Converts published weights to our variables.

Differences between a published network and ours are folded into the weights, so that
the logits agree: another epsilon, biases before a normalization, a BGR stem.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ev2 import errors
from ev2.checkpoint.published import formats, preprocessing, tensor_names
from ev2.data import imagenet_classes
from ev2.models import arch as architectures
from ev2.models import efficientnet, resnet
from ev2.models.model import Model, create_model

_SCHEMES_OF = {
    "released": ("released",),
    "keras": ("keras", "keras_resnet"),
    "torch": ("timm", "torchvision", "torch_resnet", "efficientnet_pytorch"),
}
# Padding of each scheme's networks; timm has networks of both.
_PADDINGS = {
    **dict.fromkeys(("released", "keras", "efficientnet_pytorch"), "same"),
    **dict.fromkeys(("torchvision", "torch_resnet", "keras_resnet"), "symmetric"),
}
_TORCH_EPSILON = 1e-5  # of networks that PyTorch trained with symmetric padding
_Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """The network and the variables of a published file.

    Attributes:
        model: the network, float32.
        variables: `{"params", "batch_stats"}`, float32 NumPy arrays.
        preprocessing: see `preprocessing.of_published`.
        class_names: from the file, or else WordNet ids for 1,000 classes, or numbers.
        has_both: True if the file holds EMA and raw weights.
        report: JSON values: "model", "format", "matched" and "transposed" (counts),
            "skipped" (`{"name", "reason"}` of unused tensors), "missing" (names that
            the file lacks) and "notes" (what was folded).
    """

    model: Model
    variables: dict[str, Any]
    preprocessing: dict[str, Any]
    class_names: tuple[str, ...]
    has_both: bool
    report: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Source:
    """A loaded published file and the options of the user."""

    path: str
    file: formats.PublishedFile
    scheme: str
    padding: str
    new_head: bool

    def tensors(self, model: Model) -> list[tensor_names.PublishedTensor]:
        return list(tensor_names.SCHEMES[self.scheme].tensors(model.arch))


def convert(
    path: str,
    name: str = "",
    *,
    averaged: bool = True,
    num_classes: int | None = None,
    new_head: bool = False,
    padding: str = "",
    overrides: dict[str, Any] | None = None,
) -> Converted:
    """Reads a published weight file, whose format is detected.

    Args:
        path: see `formats.FORMATS`.
        name: of the network; "" detects it by the names and shapes of all tensors.
        averaged: reads EMA weights instead of raw ones, if the file has both.
        num_classes: logits; None for the file's. 0 leaves the classifier out.
        new_head: leaves the file's classifier out and initializes a new one.
        padding: "symmetric" for timm's networks without "tf_" in their name, which a
            file does not record; "" for the format's usual one. A file written by `ev2
            export` records its padding, network and preprocessing.
        overrides: preprocessing values in place of the published ones, see
            `preprocessing.parse`.

    Raises:
        InputError: the file cannot be read, or belongs to another network: the message
            has the first tensor that does not fit, with both shapes.
    """
    chosen = preprocessing.parse(overrides or {})
    file = formats.read(path, averaged=averaged)
    scheme = _find_scheme(path, file)
    recorded = file.metadata.get("model", {})
    padding = _check_padding(padding or recorded.get("padding", ""), scheme)
    source = _Source(path, file, scheme, padding, new_head)
    name = name or recorded.get("name") or _find_network(source)
    num_classes = _check_classes(source, num_classes)
    model = _create_model(source, name, num_classes, recorded.get("blocks", ()))
    _check_network(source, model)
    variables, report = _match(source, model)
    notes = _fold(variables, scheme, model)
    if file.has_both:
        notes.append(f"{'EMA' if averaged else 'raw'} weights taken")
    if scheme == "timm" and padding != "symmetric" and not recorded:
        notes.append("read as timm's tf_ network; of another, use --padding=symmetric")
    if new_head and num_classes:
        head = jax.device_get(model.init(jax.random.key(0), 32)["params"]["classifier"])
        variables |= {("params", "classifier", leaf): v for leaf, v in head.items()}
        notes.append(f"classifier of {num_classes} classes initialized")
    return Converted(
        model=model,
        variables=tensor_names.nest(variables),
        preprocessing=preprocessing.of_published(scheme, model.arch)
        | _keras_normalization(file)
        | file.metadata.get("preprocessing", {})
        | chosen,
        class_names=_class_names(source, model.num_classes),
        has_both=file.has_both,
        report={"model": name, "format": scheme, **report, "notes": notes},
    )


def format_report(report: dict[str, Any], out: str) -> str:
    """Returns the mapping report as text: counts, and skipped tensors by reason."""
    skipped = collections.Counter(tensor["reason"] for tensor in report["skipped"])
    values = {
        key: "/".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        for key, value in report["preprocessing"].items()
    }
    lines = [
        f"{report['model']} from {report['format']} names: {report['matched']:,} "
        f"tensors matched, {report['transposed']:,} of them transposed",
        *(f"{count:,} left out: {reason}" for reason, count in skipped.items()),
        *report["notes"],
        "preprocessing: " + ", ".join(f"{k} {value}" for k, value in values.items()),
        f"weights: {out}",
    ]
    return "\n".join(lines)


def _find_scheme(path: str, file: formats.PublishedFile) -> str:
    for name in _SCHEMES_OF[file.kind]:
        stem = tensor_names.SCHEMES[name].tensor_name("stem/conv", "kernel")
        if stem in file.tensors:
            return name
    some = ", ".join(sorted(file.tensors)[:3]) or "none"
    raise errors.InputError(
        f"source: {path!r} has tensors called {some}, which no known network has; give"
        " weights of an EfficientNet or a ResNet"
    )


def _check_padding(padding: str, scheme: str) -> str:
    """Returns the scheme's padding, or `padding` where the scheme has both."""
    fixed = _PADDINGS.get(scheme, padding)
    if padding and padding != fixed:
        raise errors.InputError(
            f"padding: {scheme} networks have {fixed!r}, not {padding!r}; leave it out"
        )
    return fixed


def _check_classes(source: _Source, num_classes: int | None) -> int:
    """Returns the number of logits: the file's, unless another one is allowed."""
    scheme = tensor_names.SCHEMES[source.scheme]
    bias = source.file.tensors.get(scheme.tensor_name("classifier", "bias"))
    in_file = 0 if bias is None else len(bias)
    if num_classes not in (None, 0, in_file) and not source.new_head:
        raise errors.InputError(
            f"num_classes: {num_classes}, but {source.path!r} has {in_file} classes; "
            f"give {in_file}, or leave its classifier out (--new_head)"
        )
    return in_file if num_classes is None else num_classes


def _create_model(
    source: _Source, name: str, num_classes: int = 0, blocks: Sequence[str] = ()
) -> Model:
    arch = architectures.get(name)
    if source.scheme == "keras_resnet" and arch.is_resnet:  # stride in the first 1x1
        v1 = architectures.BOTTLENECK_V1
        stages = [dataclasses.replace(stage, operator=v1) for stage in arch.stages]
        blocks = architectures.encode(stages)
    return create_model(
        name, num_classes=num_classes, blocks=blocks, padding=source.padding
    )


def _find_network(source: _Source) -> str:
    """Returns the network whose tensors, except the classifier's, are in the file."""
    names = architectures.list_models()
    for name in names:
        if not _find_problem(source, _create_model(source, name)):
            return name
    raise errors.InputError(
        f"model: {source.path!r} ({source.scheme} names) fits none of "
        f"{', '.join(names)}; give weights of one of them"
    )


def _check_network(source: _Source, model: Model) -> None:
    problem = _find_problem(source, model)
    if not problem:
        return
    try:
        advice = f"fits {_find_network(source)}"
    except errors.InputError:
        advice = "fits no known network, or is incomplete"
    raise errors.InputError(
        f"model: {source.path!r} is not of {model.name}: {problem}; the file {advice}"
    )


def _find_problem(source: _Source, model: Model) -> str:
    """Returns the first difference between the file and the network, or "".

    The shape of the classifier is not compared. With a new head, added layers behind
    the network are ignored.
    """
    try:
        tensors = source.tensors(model)
    except errors.InputError as error:  # a block that the scheme has no name for
        return str(error)
    in_file = source.file.tensors
    needed = [t for t in tensors if not (t.folded or t.is_classifier)]
    missing = [t.name for t in needed if t.name not in in_file]
    if missing:
        return f"it has no {missing[0]} (and {len(missing) - 1} more)"
    extra = sorted(set(in_file) - {t.name for t in tensors})
    extra = [name for name in extra if not _is_normalization(name)]
    if source.new_head:
        prefix = tensor_names.SCHEMES[source.scheme].prefix(0, 0, 0)
        block = re.split(r"[^a-z_]", prefix)[0]
        extra = [name for name in extra if name.startswith(block)]
    if extra:
        return f"it also has {extra[0]} (and {len(extra) - 1} more)"
    shapes = _shapes(model)
    for tensor in needed:
        shape = in_file[tensor.name].shape
        expected = tensor.published_shape(shapes[tensor.path])
        if shape != expected:
            return f"{tensor.name} is {shape}, not {expected}"
    return ""


def _shapes(model: Model) -> dict[_Path, tuple[int, ...]]:
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), 32))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def _match(
    source: _Source, model: Model
) -> tuple[dict[_Path, np.ndarray], dict[str, Any]]:
    """Returns the network's variables by path, and the report on the file's tensors."""
    tensors = {tensor.name: tensor for tensor in source.tensors(model)}
    matched, reasons = {}, dict(source.file.left_out)
    for name, values in source.file.tensors.items():
        tensor = tensors.get(name)
        if _is_normalization(name):
            reasons[name] = "part of the preprocessing"
        elif tensor is None:
            reasons[name] = "our network has no such tensor"
        elif tensor.is_classifier and (source.new_head or not model.num_classes):
            reasons[name] = "the classifier is left out, as asked"
        else:
            matched[tensor] = np.asarray(tensor.to_ours(values), np.float32)
            if not np.isfinite(matched[tensor]).all():
                raise errors.InputError(
                    f"source: {source.path!r}: {name} is not finite; give other weights"
                )
    report = {
        "matched": len(matched),
        "transposed": sum(tensor.transposed for tensor in matched),
        "skipped": [{"name": n, "reason": reason} for n, reason in reasons.items()],
        "missing": [],
    }
    return {tensor.path: values for tensor, values in matched.items()}, report


def _fold(variables: dict[_Path, np.ndarray], scheme: str, model: Model) -> list[str]:
    """Changes `variables` so that our network gives the same logits; returns notes."""
    notes = []
    biases = [path for path in variables if path[-2:] == ("conv", "bias")]
    for path in biases:
        mean = ("batch_stats", *path[1:-2], "norm", "mean")
        variables[mean] = variables[mean] - variables.pop(path)
    if biases:
        notes.append(f"{len(biases)} biases before a normalization folded into it")
    published = _epsilon(scheme, model.arch)
    is_resnet = model.arch.is_resnet
    ours = resnet.BN_EPSILON if is_resnet else efficientnet.BN_EPSILON
    if published != ours:
        for path in [path for path in variables if path[-1] == "scale"]:
            var = variables["batch_stats", *path[1:-1], "var"].astype(np.float64)
            ratio = np.sqrt((var + ours) / (var + published))
            variables[path] = (variables[path] * ratio).astype(np.float32)
        notes.append(f"scales adapted from epsilon {published:g} to {ours:g}")
    if scheme == "keras_resnet":
        stem = ("params", "stem", "conv", "kernel")
        variables[stem] = np.ascontiguousarray(variables[stem][:, :, ::-1])
        notes.append("stem turned from BGR to RGB")
    return notes


def _epsilon(scheme: str, arch: architectures.ArchSpec) -> float:
    """Returns the epsilon that the weights were trained with."""
    if scheme == "timm" and arch.padding == "symmetric":
        return _TORCH_EPSILON
    if scheme == "torchvision" and re.fullmatch("efficientnet-b[0-4]", arch.name):
        return _TORCH_EPSILON
    return tensor_names.SCHEMES[scheme].epsilon


def _is_normalization(name: str) -> bool:
    return name.startswith("normalization/")


def _keras_normalization(file: formats.PublishedFile) -> dict[str, Any]:
    """Returns mean and standard deviation of a Keras file's input layer, if present.

    The layer takes pixels / 255. Keras's published V1 files hold the standard deviation
    in place of the variance, and divide by its root once more.
    """
    mean = file.tensors.get("normalization/mean")
    if mean is None:
        return {}
    mean = 255 * np.asarray(mean, np.float64).reshape(-1)
    if np.allclose(mean, preprocessing.IMAGENET_MEAN, atol=0.01):
        return {}
    variance = np.asarray(file.tensors["normalization/variance"], np.float64)
    values = {"mean": mean, "std": 255 * np.sqrt(variance.reshape(-1))}
    return {k: tuple(np.broadcast_to(v, 3).tolist()) for k, v in values.items()}


def _class_names(source: _Source, count: int) -> tuple[str, ...]:
    """Returns the file's names, ImageNet's, or numbers for unknown classes."""
    if not source.new_head and "class_names" in source.file.metadata:
        return tuple(source.file.metadata["class_names"])
    imagenet = tuple(row.id for row in imagenet_classes.imagenet1k())
    if not source.new_head and count == len(imagenet):
        return imagenet
    return imagenet_classes.default_class_names(count)

"""Published weights as our variables: which network, which tensor goes where.

What a published network does that ours writes otherwise is folded into its numbers,
so that the logits are the same: another epsilon, biases before a normalization, a
BGR stem.
"""

import collections
import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ev2 import errors
from ev2.checkpoint.published import formats as readers
from ev2.checkpoint.published import preprocessing
from ev2.checkpoint.published import tensor_names as names
from ev2.data import imagenet_classes
from ev2.models import arch as architectures
from ev2.models import efficientnet, resnet
from ev2.models.model import Model, create_model

_SCHEMES_OF = {
    "released": ("released",),
    "keras": ("keras", "keras_resnet"),
    "torch": ("timm", "torchvision", "torch_resnet", "efficientnet_pytorch"),
}
_TORCH_EPSILON = 1e-5  # of networks that PyTorch trained with symmetric padding
_Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """A published file in our terms.

    Attributes:
        model: the network, float32.
        variables: `{"params", "batch_stats"}`, float32 NumPy arrays.
        preprocessing: see `preprocessing.of_published`.
        class_names: from the file, or else WordNet ids for 1,000 classes, or numbers.
        has_both: whether the file holds running averages and raw values.
        report: JSON-able: "model", "format", "matched" and "transposed" (counts),
            "skipped" (`{"name", "reason"}` of the file's tensors without a place),
            "missing" (names the file lacks) and "notes" (what was folded).
    """

    model: Model
    variables: dict[str, Any]
    preprocessing: dict[str, Any]
    class_names: tuple[str, ...]
    has_both: bool
    report: dict[str, Any]


def convert(
    path: str,
    name: str = "",
    *,
    averaged: bool = True,
    num_classes: int | None = None,
    new_head: bool = False,
    padding: str = "",
) -> Converted:
    """Reads a published weight file; its format is detected.

    Args:
        path: see `readers.FORMATS`.
        name: of the network; "" finds the one whose names and shapes all agree.
        averaged: where a file has both, the running averages, not the raw values.
        num_classes: logits; None takes the file's. 0 leaves the classifier out.
        new_head: leaves the file's classifier out and draws a new one.
        padding: "symmetric" for timm's networks without "tf_" in their name, which a
            file does not tell; "" for what the format usually has. A file that
            `ev2 export` wrote says itself what it is, and what its pictures are.

    Raises:
        InputError: the file cannot be read, or is not of this network: the first
            tensor that does not fit is named, with both shapes.
    """
    file = readers.read(path, averaged=averaged)
    scheme = _find_scheme(path, file)
    own = file.own.get("model", {})
    padding = _choose_padding(padding or own.get("padding", ""), scheme)
    blocks = tuple(own.get("blocks", ()))
    name = name or own.get("name") or _find_model(path, file, scheme, padding, new_head)
    in_file = _classes_in(file, names.SCHEMES[scheme])
    num_classes = in_file if num_classes is None else num_classes
    if num_classes not in (0, in_file) and not new_head:
        raise errors.InputError(
            f"num_classes: {num_classes}, but {path!r} has {in_file} classes; give "
            f"{in_file}, or leave its classifier out (--new_head)"
        )
    model = _create(scheme, name, num_classes, padding, blocks)
    found, report = _match(path, file, scheme, model, new_head=new_head)
    notes = _fold(found, scheme, model)
    if file.has_both:
        notes.append(f"{'running averages' if averaged else 'raw values'} taken")
    if scheme == "timm" and padding != "symmetric" and not own:
        notes.append("taken as timm's tf_ network; of another, say --padding=symmetric")
    if new_head and num_classes:
        head = jax.device_get(model.init(jax.random.key(0), 32)["params"]["classifier"])
        found |= {("params", "classifier", leaf): v for leaf, v in head.items()}
        notes.append(f"classifier of {num_classes} classes drawn anew")
    wanted = preprocessing.of_published(scheme, model.arch)
    wanted |= _keras_input(file) | file.own.get("preprocessing", {})
    return Converted(
        model=model,
        variables=_tree(found),
        preprocessing=wanted,
        class_names=_class_names(model.num_classes, file, new_head),
        has_both=file.has_both,
        report={"model": name, "format": scheme, **report, "notes": notes},
    )


def _class_names(count: int, file: readers.File, new_head: bool) -> tuple[str, ...]:
    """Returns the file's names, ImageNet's, or numbers for unknown classes."""
    if not new_head and "class_names" in file.own:
        return tuple(file.own["class_names"])
    imagenet = tuple(row.id for row in imagenet_classes.imagenet1k())
    if not new_head and count == len(imagenet):
        return imagenet
    return imagenet_classes.default_class_names(count)


def _choose_padding(padding: str, scheme: str) -> str:
    """What was asked for, where the format leaves it open; else what it has."""
    fixed = {"torchvision": "symmetric", "released": "same", "keras": "same"}
    fixed |= {"efficientnet_pytorch": "same"}
    fixed |= dict.fromkeys(("keras_resnet", "torch_resnet"), "symmetric")
    if padding and padding != fixed.get(scheme, padding):
        raise errors.InputError(
            f"padding: {padding!r} is not that of {scheme} networks; leave it out"
        )
    return fixed.get(scheme, padding)


def _find_scheme(path: str, file: readers.File) -> str:
    for name in _SCHEMES_OF[file.kind]:
        scheme = names.SCHEMES[name]
        leaf = "weight" if scheme.framework == "torch" else "kernel"
        if scheme.outer["stem/conv"] + scheme.separator + leaf in file.tensors:
            return name
    some = ", ".join(sorted(file.tensors)[:3]) or "none"
    raise errors.InputError(
        f"source: {path!r} has tensors called {some}, which no known network has; give"
        " weights of an EfficientNet or a ResNet"
    )


def _create(
    scheme: str,
    name: str,
    num_classes: int,
    padding: str,
    blocks: Sequence[str] = (),
) -> Model:
    is_resnet = architectures.get(name).is_resnet
    if is_resnet != scheme.endswith("resnet"):
        kinds = ("an EfficientNet", "a ResNet")
        raise errors.InputError(
            f"model: {name!r} is {kinds[is_resnet]}, and the file is of "
            f"{kinds[not is_resnet]} ({scheme} names); give its own name, or none"
        )
    if scheme == "keras_resnet":  # its stride is in the first 1x1
        rows = architectures.get(name).stages
        v1 = architectures.BOTTLENECK_V1
        blocks = architectures.encode(dataclasses.replace(r, operator=v1) for r in rows)
    return create_model(name, num_classes=num_classes, blocks=blocks, padding=padding)


def _shapes(model: Model) -> dict[_Path, tuple[int, ...]]:
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), 32))
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def _is_head(tensor: names.Tensor) -> bool:
    return tensor.path[1] == "classifier"


def _classes_in(file: readers.File, scheme: names.Scheme) -> int:
    bias = file.tensors.get(scheme.outer["classifier"] + scheme.separator + "bias")
    return 0 if bias is None else len(bias)


def _find_model(
    path: str, file: readers.File, scheme: str, padding: str, new_head: bool
) -> str:
    """The network all of whose tensors, but the classifier's, are in the file."""
    is_resnet = scheme.endswith("resnet")
    for name in architectures.list_models():
        if architectures.get(name).is_resnet != is_resnet:
            continue
        model = _create(scheme, name, 0, padding)
        try:
            tensors = list(names.SCHEMES[scheme].tensors(model.arch))
        except errors.InputError:  # a block that the scheme has no name for
            continue
        if not _missing(file, tensors) and not _misfits(file, tensors, model):
            if not _extra(file, tensors, scheme, new_head=new_head):
                return name
    raise errors.InputError(
        f"model: {path!r} ({scheme} names) fits none of "
        f"{', '.join(architectures.list_models())}; give weights of one of them"
    )


def _missing(file: readers.File, tensors: list[names.Tensor]) -> list[str]:
    """Names that the network needs and the file lacks; not of the classifier."""
    needed = [t.name for t in tensors if not (t.folded or _is_head(t))]
    return [name for name in needed if name not in file.tensors]


def _extra(
    file: readers.File, tensors: list[names.Tensor], scheme: str, *, new_head: bool
) -> list[str]:
    """Names in the file for which the network should have a place.

    With a new head, layers that somebody put behind the network are none of them.
    """
    known = {tensor.name for tensor in tensors}
    extra = sorted(n for n in file.tensors if n not in known and not _is_input(n))
    if new_head:
        prefix = names.SCHEMES[scheme].prefix(0, 0, 0)
        block = re.match(r"[a-z_]+", prefix)
        assert block is not None
        extra = [name for name in extra if name.startswith(block[0])]
    return extra


def _misfits(file, tensors, model) -> list[str]:
    """Lines about tensors of other shapes; the classifier is not looked at."""
    shapes = _shapes(model)
    lines = []
    for tensor in tensors:
        values = file.tensors.get(tensor.name)
        if values is None or _is_head(tensor) or tensor.folded:
            continue
        ours = tensor.shape_of_theirs(shapes[tensor.path])
        if values.shape != ours:
            lines.append(f"{tensor.name} is {values.shape}, not {ours}")
    return lines


def _match(
    path: str,
    file: readers.File,
    scheme: str,
    model: Model,
    *,
    new_head: bool,
) -> tuple[dict[_Path, np.ndarray], dict[str, Any]]:
    """Every tensor of the network from the file, and what the report says of it."""
    tensors = list(names.SCHEMES[scheme].tensors(model.arch))
    problem = _problem(file, tensors, model, scheme, new_head=new_head)
    if problem:
        padding = model.arch.padding
        try:
            advice = f"fits {_find_model(path, file, scheme, padding, new_head)}"
        except errors.InputError:
            advice = "fits no known network, or is not whole"
        raise errors.InputError(
            f"model: {path!r} is not of {model.name}: {problem}; the file {advice}"
        )
    found, reasons = {}, {}
    for tensor in tensors:
        if tensor.name not in file.tensors:
            continue
        if _is_head(tensor) and (new_head or not model.num_classes):
            reasons[tensor.name] = "the classifier is left out, as asked"
            continue
        values = np.asarray(tensor.to_ours(file.tensors[tensor.name]), np.float32)
        if not np.isfinite(values).all():
            raise errors.InputError(
                f"source: {path!r}: {tensor.name} is not finite; give other weights"
            )
        found[tensor] = values
    known = {tensor.name for tensor in tensors}
    reasons |= {n: "no place in ours" for n in file.tensors if n not in known}
    inputs = filter(_is_input, file.tensors)
    reasons |= dict.fromkeys(inputs, "part of the preprocessing") | file.left_out
    report = {
        "matched": len(found),
        "transposed": sum(tensor.transposed for tensor in found),
        "skipped": [{"name": n, "reason": reason} for n, reason in reasons.items()],
        "missing": [],
    }
    return {tensor.path: values for tensor, values in found.items()}, report


def _problem(
    file,
    tensors: list[names.Tensor],
    model: Model,
    scheme: str,
    *,
    new_head: bool,
) -> str:
    """Why the file is not of the model, or ""."""
    misfits = _misfits(file, tensors, model)
    if misfits:
        return f"{misfits[0]} ({len(misfits)} such)"
    missing = _missing(file, tensors)
    if missing:
        near = difflib.get_close_matches(missing[0], file.tensors, n=1)
        hint = f", the nearest is {near[0]}" if near else ""
        return f"it has no {missing[0]} ({len(missing)} such){hint}"
    extra = _extra(file, tensors, scheme, new_head=new_head)
    return f"it has {extra[0]} too ({len(extra)} such)" if extra else ""


def _is_input(name: str) -> bool:
    return name.startswith("normalization/")


def _fold(found: dict[_Path, np.ndarray], scheme: str, model: Model) -> list[str]:
    """Changes `found` in place so that our network computes theirs; says how."""
    notes = []
    biases = [p for p in found if p[-2:] == ("conv", "bias")]
    for path in biases:
        mean = ("batch_stats", *path[1:-2], "norm", "mean")
        found[mean] = found[mean] - found.pop(path)
    if biases:
        notes.append(f"{len(biases)} biases before a normalization folded into it")
    theirs, ours = _epsilon(scheme, model.arch), _own_epsilon(model.arch)
    if theirs != ours:
        for path in [p for p in found if p[-1] == "scale"]:
            var = found["batch_stats", *path[1:-1], "var"].astype(np.float64)
            ratio = np.sqrt((var + ours) / (var + theirs))
            found[path] = (found[path] * ratio).astype(np.float32)
        notes.append(
            f"scales changed for an epsilon of {theirs:g} in place of {ours:g}"
        )
    if scheme == "keras_resnet":
        stem = ("params", "stem", "conv", "kernel")
        found[stem] = np.ascontiguousarray(found[stem][:, :, ::-1])
        notes.append("stem turned from BGR to RGB")
    return notes


def _epsilon(scheme: str, arch: architectures.ArchSpec) -> float:
    """The epsilon that the weights were trained with."""
    symmetric = arch.padding == "symmetric"
    if scheme == "timm" and symmetric:
        return _TORCH_EPSILON
    if scheme == "torchvision" and arch.name in (
        f"efficientnet-b{i}" for i in range(5)
    ):
        return _TORCH_EPSILON
    return names.SCHEMES[scheme].epsilon


def _own_epsilon(arch: architectures.ArchSpec) -> float:
    return resnet.BN_EPSILON if arch.is_resnet else efficientnet.BN_EPSILON


def _keras_input(file: readers.File) -> dict[str, Any]:
    """What a Keras file's own input layer says of mean and deviation, if it has one.

    The layer sees pixels / 255. Keras's published V1 files hold the deviation where
    the variance belongs, and divide by its root once more; others are taken at their
    word.
    """
    mean = file.tensors.get("normalization/mean")
    if mean is None:
        return {}
    mean = 255 * np.asarray(mean, np.float64).reshape(-1)
    variance = np.asarray(file.tensors["normalization/variance"], np.float64).reshape(
        -1
    )
    if np.allclose(mean, preprocessing.IMAGENET_MEAN, atol=0.01):
        return {}
    std = np.broadcast_to(255 * np.sqrt(variance), 3)
    return {
        "mean": tuple(np.broadcast_to(mean, 3).tolist()),
        "std": tuple(std.tolist()),
    }


def _tree(flat: dict[_Path, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, values in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.asarray(values, np.float32)
    return tree


def format_report(report: dict, out: str) -> str:
    """The mapping report for people: counts, then what was left out by reason."""
    skipped = collections.Counter(row["reason"] for row in report["skipped"])
    lines = [
        f"{report['model']} from {report['format']} names: {report['matched']:,} "
        f"tensors matched, {report['transposed']:,} of them transposed",
        *(f"{count:,} left out: {reason}" for reason, count in skipped.items()),
        *report["notes"],
        "preprocessing: "
        + ", ".join(f"{k} {_short(v)}" for k, v in report["preprocessing"].items()),
        f"weights: {out}",
    ]
    return "\n".join(lines)


def _short(value: object) -> str:
    return "/".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)

"""Compares logits with reference implementations on equal weights: `ev2 bench parity`.

A reference implementation builds its network with random weights, biases and BatchNorm
statistics, writes it to a file in its own format, and computes logits. `ev2 convert`
converts the file, and the logits of ev2 are compared in float32 at an even and an odd
image size.

Keras is installed with ev2; timm and torchvision: pip install 'ev2[peers]'.
"""

import concurrent.futures
import functools
import importlib.util
import multiprocessing
import pathlib
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tabulate
import tqdm

from ev2 import errors
from ev2.bench import reference_steps
from ev2.checkpoint.published import convert
from ev2.models import arch

BOUND = 1e-4  # on max |reference - ours| / max |reference|
SIZES = (64, 75)  # px; every network here takes them
IMAGES = 2
CLASSES = 50  # few: the classifier is one matrix product
# Images [N, S, S, 3] as uint8, and normalized as in ev2; to logits [N, CLASSES].
_Logits = Callable[[np.ndarray, np.ndarray], np.ndarray]


def compare(
    models: Sequence[str] = (), witnesses: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the differences from the logits of reference implementations.

    Args:
        models: names of `ev2.list_models()`; () for every network of a reference.
        witnesses: "keras", "timm", "torchvision"; () for the installed ones.

    Returns:
        `{"bound", "sizes", "results": [{"model", "witness", "max_relative_error":
        [one per size], "matched"}]}`.

    Raises:
        InputError: if a model or reference is unknown or not installed.
    """
    witnesses = tuple(witnesses) or tuple(w for w in REFERENCES if _installed(w))
    for witness in witnesses:
        errors.check_choice("witnesses", witness, REFERENCES)
        if not _installed(witness):
            raise errors.InputError(
                f"witnesses: {witness!r} is not installed; pip install 'ev2[peers]'"
            )
    for name in models:
        arch.get(name)
        if not any(REFERENCES[witness][0](name) for witness in witnesses):
            raise errors.InputError(
                f"models: {name!r} is in none of {', '.join(witnesses)}; leave it out"
            )
    results = []
    for witness in witnesses:
        names = [n for n in models or arch.list_models() if REFERENCES[witness][0](n)]
        # One process per reference: TensorFlow and PyTorch crash beside one another.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as process:
            rows = process.map(compare_one, names, [witness] * len(names))
            results += tqdm.tqdm(rows, witness, len(names), unit="network")
    return {"bound": BOUND, "sizes": list(SIZES), "results": results}


def format_table(table: dict[str, Any]) -> str:
    """Returns the comparison as an aligned table, the worst figure last."""
    rows = [
        (row["model"], row["witness"], row["matched"], *row["max_relative_error"])
        for row in table["results"]
    ]
    headings = ("model", "reference", "tensors", *(f"{s} px" for s in table["sizes"]))
    text = tabulate.tabulate(rows, headings, tablefmt="plain", floatfmt=".1e")
    worst = np.max([row["max_relative_error"] for row in table["results"]])
    bound = f"{table['bound']:.0e}"
    return f"{text}\nlargest relative difference {worst:.1e}, bound {bound}"


def check(table: dict[str, Any]) -> None:
    """Raises CheckError if a difference of `compare` exceeds the bound."""
    for row in table["results"]:
        worst = float(np.max(row["max_relative_error"]))  # NaN if any is NaN
        if not worst <= table["bound"]:
            raise errors.CheckError(
                f"{row['model']}: logits differ from {row['witness']}'s by "
                f"{worst:.1e}, allowed is {table['bound']:.0e}"
            )


def _installed(witness: str) -> bool:
    return importlib.util.find_spec(witness) is not None


def compare_one(name: str, witness: str) -> dict[str, Any]:
    """Compares one network with one reference; returns its row of `compare`."""
    random = np.random.default_rng(0)
    _, build = REFERENCES[witness]
    with tempfile.TemporaryDirectory() as folder:
        path, logits_of = build(name, folder, random)
        converted = convert.convert(path, name)
    mean, std = (np.float32(converted.preprocessing[key]) for key in ("mean", "std"))
    apply = jax.jit(lambda v, images: converted.model.apply(v, images))
    differences = []
    for size in SIZES:
        images = random.integers(0, 256, (IMAGES, size, size, 3), np.uint8)
        normalized = (images - mean) / std
        reference = logits_of(images, normalized)
        difference = np.abs(reference - apply(converted.variables, normalized))
        differences.append(float(difference.max() / np.abs(reference).max()))
    return {
        "model": name,
        "witness": witness,
        "max_relative_error": differences,
        "matched": converted.report["matched"],
    }


def keras_name(name: str) -> str:
    """Returns the name in `keras.applications`; "" for XL, Lite and tiny."""
    family, _, size = name.partition("-")
    if family.startswith("resnet"):
        return family.replace("resnet", "ResNet")
    if size[:4] in ("xl", "tiny", "lite"):
        return ""
    version = "V2" if family.endswith("v2") else ""
    return f"EfficientNet{version}{size.upper()}"


def _keras(name: str, folder: str, random) -> tuple[str, _Logits]:
    import keras

    build = getattr(keras.applications, keras_name(name))
    options = {"weights": None, "classes": CLASSES, "classifier_activation": None}
    network = build(**options)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(_norm(random, layer.gamma.shape[0]))
            continue
        for weight in layer.trainable_weights:
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            summed = weight.shape[:2] if depthwise else weight.shape[:-1]
            weight.assign(_weight(random, weight.shape, summed))
    path = str(pathlib.Path(folder, "keras.weights.h5"))
    network.save_weights(path)

    def logits_of(images: np.ndarray, normalized: np.ndarray) -> np.ndarray:
        del normalized  # Keras normalizes in the network
        # Keras fixes its padding when it builds a network.
        sized = build(input_shape=images.shape[1:], **options)
        sized.set_weights(network.get_weights())
        pixels = images.astype(np.float32)
        if name.startswith("resnet"):
            pixels = keras.applications.resnet.preprocess_input(pixels)
        return np.asarray(sized(pixels, training=False))

    return path, logits_of


def _norm(random, channels: int) -> list[np.ndarray]:
    """Returns scale, offset, running mean and variance."""
    # A branch is weaker than its shortcut. Larger scales saturate the gates of
    # squeeze-and-excite: then rounding decides, and float32 differs from float64.
    values = [random.uniform(0.3, 0.9, channels), random.normal(0, 0.1, channels)]
    values += [random.normal(0, 0.1, channels), random.uniform(0.5, 1.5, channels)]
    return [value.astype(np.float32) for value in values]


def _weight(random, shape: Sequence[int], summed: Sequence[int]) -> np.ndarray:
    """Returns a kernel, summed over axes of the shape `summed`, or a bias for ()."""
    deviation = (2 / np.prod(summed)) ** 0.5 if len(summed) else 0.1
    return random.normal(0, deviation, shape).astype(np.float32)


def timm_name(name: str) -> str:
    """Returns the name of the same network in timm, or ""."""
    if name.startswith("resnet"):
        return name
    return "" if "tiny" in name else f"tf_{name}".replace("-", "_")


def torchvision_name(name: str) -> str:
    """Returns the name of the same network in torchvision, or ""."""
    if name.startswith("resnet"):
        return name
    found = re.fullmatch(r"efficientnet(v2)?-(b\d|s|m|l)", name)
    if not found or bool(found[1]) == found[2].startswith("b"):
        return ""
    return f"efficientnet_v2_{found[2]}" if found[1] else f"efficientnet_{found[2]}"


def _torch(library: str, name: str, folder: str, random) -> tuple[str, _Logits]:
    import torch
    from safetensors import torch as safetensors

    name_in, _ = REFERENCES[library]
    network = reference_steps.make_torch(library, name_in(name), CLASSES).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            stats = [module.running_mean, module.running_var]
            tensors = [module.weight, module.bias, *stats]
            values = _norm(random, module.num_features)
        else:
            tensors = list(module.parameters(recurse=False))
            values = [_weight(random, t.shape, t.shape[1:]) for t in tensors]
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data.copy_(torch.from_numpy(value))
    path = str(pathlib.Path(folder, "torch.safetensors"))
    safetensors.save_file(network.state_dict(), path)

    def logits_of(images: np.ndarray, normalized: np.ndarray) -> np.ndarray:
        del images
        with torch.no_grad():
            pixels = torch.from_numpy(normalized).permute(0, 3, 1, 2)
            return network(pixels).numpy()

    return path, logits_of


# Name of a network in the reference ("" for none), and its builder.
REFERENCES = {
    "keras": (keras_name, _keras),
    "timm": (timm_name, functools.partial(_torch, "timm")),
    "torchvision": (torchvision_name, functools.partial(_torch, "torchvision")),
}

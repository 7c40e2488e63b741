"""Measures the latency of a network, live and exported: `ev2 bench infer`.

    ev2 bench infer --model efficientnetv2-b0 --batch 16

As in the paper's Tables 7 and 11 (latency at batch 16). Each call goes from uint8
images in host memory to logits in host memory, one call after another.
"""

import importlib.metadata
import pathlib
import platform
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tabulate

from ev2 import errors
from ev2.export import export, servable
from ev2.models.model import create_model
from ev2.train import timing

# A safetensors file holds weights alone.
FORMATS = ("stablehlo", "saved_model", "tflite", "onnx")


def measure(
    *,
    model: str | None = None,
    checkpoint: str | None = None,
    batch_size: int = 16,
    image_size: int = 0,
    formats: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Returns the latency of a network and of its exports.

    Args:
        model: name of a network, with random weights; or
        checkpoint: trained weights.
        batch_size: images per call. TensorFlow Lite takes them one by one.
        image_size: px; 0 for the network's size of evaluation.
        formats: of `FORMATS`; None for all whose packages are installed.

    Returns:
        `{"model", "image_size", "batch_size", "platform", "versions", "results":
        [{"name", "device", "calls", "median_ms", "p95_ms", "images_per_second"}]}`,
        the live network ("ev2") first; milliseconds are per batch.

    Raises:
        InputError: if both or neither of model and checkpoint are given, or a value is
            not allowed.
    """
    names = _check(model, checkpoint, batch_size, image_size, formats)
    source = _source(model, checkpoint, image_size)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *source.image_shape), np.uint8)
    apply, variables = jax.jit(source.apply), jax.device_put(source.variables)

    def call(images):
        return np.asarray(apply(variables, images))

    results = [make_row("ev2", jax.default_backend(), call, images)]
    results += [_measure_export(source, name, images) for name in names]
    return {
        "model": source.model.name,
        "image_size": source.image_size,
        "batch_size": batch_size,
        "platform": f"{jax.devices()[0].device_kind}, {platform.machine()}",
        "versions": _versions(names),
        "results": results,
    }


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `measure` as a table."""
    keys = ("name", "device", "calls", "median_ms", "p95_ms", "images_per_second")
    table = tabulate.tabulate(
        [[row[key] for key in keys] for row in figures["results"]],
        ("", "device", "calls", "median ms", "p95 ms", "images/s"),
        tablefmt="plain",
        floatfmt=",.1f",
    )
    title = f"{figures['model']}, {figures['image_size']} px, batches of "
    return f"{title}{figures['batch_size']}\n{table}"


def _check(
    model: str | None,
    checkpoint: str | None,
    batch_size: int,
    image_size: int,
    formats: Sequence[str] | None,
) -> list[str]:
    """Returns the formats to measure; raises InputError if a value is not allowed."""
    if (model is None) == (checkpoint is None):
        raise errors.InputError("model: give --model or --checkpoint, one of the two")
    if batch_size < 1:
        raise errors.InputError(f"batch: {batch_size} is not allowed; use 1 or more")
    if image_size < 0:
        raise errors.InputError(f"image_size: {image_size} is negative; use pixels")
    names = installed_formats() if formats is None else list(formats)
    for name in names:
        errors.check_choice("formats", name, FORMATS)
        export.check_installed(name)
    return names


def installed_formats() -> list[str]:
    """Returns the formats whose packages are installed."""
    names = []
    for name in FORMATS:
        try:
            export.check_installed(name)
        except errors.InputError:
            continue
        names.append(name)
    return names


def _versions(names: Sequence[str]) -> dict[str, str]:
    packages = [package for name in names for package in export.FORMATS[name].packages]
    versions = {p: importlib.metadata.version(p) for p in ("jax", *packages)}
    return {"python": platform.python_version(), **versions}


def _source(
    model: str | None, checkpoint: str | None, image_size: int
) -> servable.Servable:
    if checkpoint is not None:
        return servable.from_checkpoint(checkpoint, image_size=image_size)
    network = create_model(str(model))
    return servable.Servable(
        model=network,
        variables=network.init(jax.random.key(0)),
        mean=(127.5,) * 3,
        std=(127.5,) * 3,
        image_size=image_size or network.eval_image_size,
    )


def _measure_export(
    source: servable.Servable, name: str, images: np.ndarray
) -> dict[str, Any]:
    device = jax.default_backend() if name == "stablehlo" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / name
        export.FORMATS[name].write(source, path)
        call = export.FORMATS[name].load(path, source)
        return make_row(name, device, call, images)


def make_row(
    name: str, device: str, call: Callable, images: np.ndarray
) -> dict[str, Any]:
    """Times a call on a batch and returns its figures."""
    seconds = np.array(timing.time_calls(lambda: call(images)))
    median, p95 = np.percentile(seconds, [50, 95])
    return {
        "name": name,
        "device": device,
        "calls": len(seconds),
        "median_ms": round(1e3 * float(median), 3),
        "p95_ms": round(1e3 * float(p95), 3),
        "images_per_second": round(len(images) / float(median), 1),
    }

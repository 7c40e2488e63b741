"""Latency of a batch: the live network and what `ev2 export` makes of it.

    ev2 bench infer --model efficientnetv2-b0 --batch 16

The question is that of the paper's Tables 7 and 11 (latency at batch 16). Each call
goes from uint8 pictures in the host's memory to logits in the host's memory, one call
after another.
"""

import importlib.metadata
import pathlib
import platform
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ev2 import errors
from ev2.export import export, servable
from ev2.models.model import create_model
from ev2.train import timing

# safetensors holds weights alone: there is nothing to run.
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
        model: a network with random weights; or
        checkpoint: one with its own.
        batch_size: pictures in a call. TensorFlow Lite takes them one by one.
        image_size: pixels; 0 means what the network is evaluated at.
        formats: of `FORMATS`; None means those whose packages are installed.

    Returns:
        `{"model", "image_size", "batch_size", "platform", "versions", "results":
        [{"name", "device", "calls", "median_ms", "p95_ms", "images_per_second"}]}`,
        the live network ("ev2") first; milliseconds are per batch.

    Raises:
        InputError: both or none of model and checkpoint, or a value not allowed.
    """
    names = _check(model, checkpoint, batch_size, image_size, formats)
    source = _source(model, checkpoint, image_size)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (batch_size, *source.image_shape), np.uint8)
    results = [_row("ev2", jax.default_backend(), _live(source), pictures)]
    for name in names:
        results.append(_measure_export(source, name, pictures))
    return {
        "model": source.model.name,
        "image_size": source.image_size,
        "batch_size": batch_size,
        "platform": f"{jax.devices()[0].device_kind}, {platform.machine()}",
        "versions": _versions(names),
        "results": results,
    }


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `measure` as a table for people."""
    lines = [
        f"{figures['model']}, {figures['image_size']} px, batches of "
        f"{figures['batch_size']}",
        f"{'':<14}{'device':>8}{'calls':>7}{'median ms':>12}{'p95 ms':>12}"
        f"{'images/s':>11}",
    ]
    for row in figures["results"]:
        lines.append(
            f"{row['name']:<14}{row['device']:>8}{row['calls']:>7}"
            f"{row['median_ms']:>12,.1f}{row['p95_ms']:>12,.1f}"
            f"{row['images_per_second']:>11,.1f}"
        )
    return "\n".join(lines)


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
    names = _installed() if formats is None else list(formats)
    for name in names:
        errors.check_choice("formats", name, FORMATS)
        export.check_installed(name)
    return names


def _installed() -> list[str]:
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
    size = image_size or network.eval_image_size
    return servable.Servable(
        model=network,
        variables=network.init(jax.random.key(0)),
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
        image_size=size,
    )


def _live(source: servable.Servable) -> Callable:
    call, variables = jax.jit(source.apply), jax.device_put(source.variables)
    return lambda pictures: np.asarray(call(variables, pictures))


def _measure_export(
    source: servable.Servable, name: str, pictures: np.ndarray
) -> dict[str, Any]:
    device = jax.default_backend() if name == "stablehlo" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / name
        export.FORMATS[name].write(source, path)
        call = export.FORMATS[name].load(path, source)
        return _row(name, device, call, pictures)


def _row(
    name: str, device: str, call: Callable, pictures: np.ndarray
) -> dict[str, Any]:
    seconds = np.array(timing.time_calls(lambda: call(pictures)))
    median, p95 = np.percentile(seconds, [50, 95])
    return {
        "name": name,
        "device": device,
        "calls": len(seconds),
        "median_ms": round(1e3 * float(median), 3),
        "p95_ms": round(1e3 * float(p95), 3),
        "images_per_second": round(len(pictures) / float(median), 1),
    }

"""Exports weights to the formats of other tools, and compares them with the source.

Each format is a module with `write(source, path)` and `load(path, source)`; `load`
returns a function from uint8 images to logits that the format's own runtime computes.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import ev2
from ev2 import errors, files
from ev2.export import onnx, safetensors, saved_model, servable, stablehlo, tflite

REPORT = "export.json"
BATCH_SIZES = (1, 5)
# Relative to the largest logit, or to 1: rounding in another order of summation.
TOLERANCE = 1e-4


class Format(NamedTuple):
    """The functions of a format, and the packages that it needs.

    `count_unequal` is for weights: the number of tensors read back with other bits.
    """

    write: Callable[[servable.Servable, os.PathLike], None]
    load: Callable[[os.PathLike, servable.Servable], Callable]
    packages: tuple[str, ...]
    count_unequal: Callable[[os.PathLike, servable.Servable], int] | None = None


FORMATS = {
    "stablehlo": Format(stablehlo.write, stablehlo.load, ("jax",)),
    "saved_model": Format(saved_model.write, saved_model.load, ("tensorflow",)),
    "tflite": Format(tflite.write, tflite.load, ("tensorflow",)),
    "onnx": Format(onnx.write, onnx.load, ("onnx", "onnxruntime")),
    "safetensors": Format(
        safetensors.write, safetensors.load, ("safetensors",), safetensors.count_unequal
    ),
}


def export(
    checkpoint: str, format_name: str, out: str, *, weights: str = "ema"
) -> dict[str, Any]:
    """Writes the weights of a checkpoint in another format and compares the two.

    Args:
        checkpoint: see `pretrained.load_pretrained`.
        format_name: one of `FORMATS`.
        out: file to write, or folder for "saved_model". It appears when complete.
        weights: "ema" or "raw".

    Returns:
        The report, which is also in `export.json` beside `out`: "max_abs_difference"
        between the logits of the source and of the export, on CPU, over random images
        in batches of `BATCH_SIZES`; "bound", the allowed difference; and more.

    Raises:
        InputError: the format is unknown, a package or the checkpoint is missing, `out`
            exists, or `export.json` would replace a file that is not a report. It is
            raised before anything is computed or written.
        CheckError: the difference is above the bound, or a tensor of "safetensors"
            has other bits. The export stays.
    """
    errors.check_choice("format", format_name, FORMATS)
    check_installed(format_name)
    files.check_new("out", out)
    _check_report(pathlib.Path(out))
    source = servable.from_checkpoint(checkpoint, weights=weights)
    return write_checked(source, format_name, pathlib.Path(out))


def write_checked(
    source: servable.Servable, format_name: str, out: pathlib.Path
) -> dict[str, Any]:
    """Exports `source` and compares; see `export`."""
    started = time.monotonic()
    with files.atomic_path(out) as temporary:
        FORMATS[format_name].write(source, temporary)
    written = time.monotonic()
    packages = dict.fromkeys(("jax", *FORMATS[format_name].packages))
    versions = {name: importlib.metadata.version(name) for name in packages}
    report = {
        "format": format_name,
        **compare(source, format_name, out),
        "file": out.name,
        "bytes": _size(out),
        "model": source.model.name,
        "classes": source.model.num_classes,
        "images": ["batch", *source.image_shape],
        "versions": {"ev2": ev2.__version__, **versions},
        "write_seconds": round(written - started, 3),
        "check_seconds": round(time.monotonic() - written, 3),
    }
    content = json.dumps(report, indent=1) + "\n"
    files.write_atomically(out.with_name(REPORT), content.encode())
    if not report["passed"]:
        raise errors.CheckError(
            f"{format_name}: logits of {str(out)!r} differ from the source by "
            f"{report['max_abs_difference']:.3g}, allowed is {report['bound']:.3g} "
            f"({report.get('unequal_tensors', 0)} tensors have other bits); the export "
            f"stays, with {REPORT} beside it"
        )
    return report


def compare(
    source: servable.Servable, format_name: str, path: pathlib.Path
) -> dict[str, Any]:
    """Returns the differences between the logits of the export at `path` and `source`.

    Both are computed on CPU in float32.
    """
    file_format = FORMATS[format_name]
    differences, largest = {}, 0.0
    with jax.default_device(jax.devices("cpu")[0]):
        call, reference = file_format.load(path, source), jax.jit(source.apply)
        for count in BATCH_SIZES:
            images = source.random_images(count)
            expected = np.asarray(reference(source.variables, images))
            logits = call(images)
            assert logits.shape == expected.shape and logits.dtype == np.float32
            differences[str(count)] = float(np.abs(logits - expected).max())
            largest = max(largest, float(np.abs(expected).max()))
    bound = TOLERANCE * max(1.0, largest)
    counts_unequal = file_format.count_unequal
    unequal = counts_unequal(path, source) if counts_unequal else 0
    return {
        "max_abs_difference": max(differences.values()),
        "bound": bound,
        # NaN is not below the bound.
        "passed": all(value <= bound for value in differences.values()) and not unequal,
        "largest_logit": largest,
        "max_abs_difference_by_batch": differences,
        **({"unequal_tensors": unequal} if counts_unequal else {}),
    }


def check_installed(format_name: str) -> None:
    """Raises InputError if a package that the format needs is missing."""
    packages = FORMATS[format_name].packages
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.InputError(
            f"format: {format_name!r} needs {' and '.join(missing)}; "
            "pip install 'ev2[export]'"
        )


def _check_report(out: pathlib.Path) -> None:
    """Raises InputError if the report would replace a file that is not a report."""
    path = out.with_name(REPORT)
    if out.name == REPORT:
        raise errors.InputError(
            f"out: {str(out)!r} is the path of the report; choose another name"
        )
    try:
        is_report = "max_abs_difference" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        is_report = False
    if os.path.lexists(path) and not is_report:
        raise errors.InputError(
            f"out: the report would replace {str(path)!r}, which is not an export's "
            "report; choose another folder"
        )


def _size(path: pathlib.Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in paths if file.is_file())

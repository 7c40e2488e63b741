"""Models that other tools can serve: written, read back, compared with the source.

Each format is a module with `write(program, path)` and `load(path, program)`; `load`
gives a function from uint8 pictures to logits that the format's own runtime computes.
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
from ev2.export import onnx, program, safetensors, saved_model, stablehlo, tflite

REPORT = "export.json"
BATCH_SIZES = (1, 5)
# Of the larger of 1 and the largest logit: rounding in another order of summation.
TOLERANCE = 1e-4


class Format(NamedTuple):
    """How a format is written and read, and the packages that this takes.

    `count_unequal` is for weights: how many tensors came back with other bits.
    """

    write: Callable[[program.Program, pathlib.Path], None]
    load: Callable[[pathlib.Path, program.Program], Callable]
    packages: tuple[str, ...]
    count_unequal: Callable[[pathlib.Path, program.Program], int] | None = None


FORMATS = {
    "stablehlo": Format(stablehlo.write, stablehlo.load, ("jax",)),
    "saved_model": Format(saved_model.write, saved_model.load, ("tensorflow",)),
    "tflite": Format(tflite.write, tflite.load, ("tensorflow",)),
    "onnx": Format(onnx.write, onnx.load, ("onnx", "onnxruntime")),
    "safetensors": Format(
        safetensors.write,
        safetensors.load,
        ("safetensors",),
        safetensors.count_unequal,
    ),
}


def export(
    checkpoint: str, format_name: str, out: str, *, weights: str = "ema"
) -> dict[str, Any]:
    """Writes a checkpoint in a format of others and compares the two.

    Args:
        checkpoint: see `pretrained.load_pretrained`.
        format_name: one of `FORMATS`.
        out: file to write, or folder for "saved_model". It appears when complete.
        weights: "ema" or "raw".

    Returns:
        The report, which is also in `export.json` beside `out`: "max_abs_difference"
        between the logits of the source and of what was read back, on CPU, over random
        pictures in batches of `BATCH_SIZES`; "bound", what is allowed; and more.

    Raises:
        InputError: an unknown format, a package that is missing, no checkpoint, or an
            `out` that exists. Nothing is computed or written then; so too where a file
            `export.json` that is no earlier report would be replaced.
        CheckError: the difference is above the bound, or a tensor of "safetensors"
            has other bits. What was written stays.
    """
    errors.check_choice("format", format_name, FORMATS)
    check_installed(format_name)
    files.check_new("out", out)
    _check_report(pathlib.Path(out))
    source = program.from_checkpoint(checkpoint, weights=weights)
    return write_checked(source, format_name, pathlib.Path(out))


def write_checked(
    source: program.Program, format_name: str, out: pathlib.Path
) -> dict[str, Any]:
    """Does what `export` does, for a program."""
    started = time.monotonic()
    with files.atomic_path(out) as aside:
        FORMATS[format_name].write(source, aside)
    written = time.monotonic()
    report = {
        "format": format_name,
        **compare(source, format_name, out),
        "file": out.name,
        "bytes": _size(out),
        "model": source.model.name,
        "classes": source.model.num_classes,
        "images": ["batch", *source.image_shape],
        "versions": _versions(format_name),
        "write_seconds": round(written - started, 3),
        "check_seconds": round(time.monotonic() - written, 3),
    }
    content = json.dumps(report, indent=1) + "\n"
    files.write_atomically(out.with_name(REPORT), content.encode())
    if not report["passed"]:
        raise errors.CheckError(
            f"{format_name}: logits of {str(out)!r} differ from the source by "
            f"{report['max_abs_difference']:.3g}, allowed is {report['bound']:.3g} "
            f"({report.get('unequal_tensors', 0)} tensors have other bits); what was "
            f"written stays, with {REPORT} beside it"
        )
    return report


def compare(
    source: program.Program, format_name: str, path: pathlib.Path
) -> dict[str, Any]:
    """Returns how far the logits of the export at `path` are from those of `source`.

    Both run on CPU in float32, whatever other devices there are.
    """
    form = FORMATS[format_name]
    with jax.default_device(jax.devices("cpu")[0]):
        call, reference = form.load(path, source), jax.jit(source.apply)
        differences, largest = {}, 0.0
        for count in BATCH_SIZES:
            pictures = program.random_pictures(source, count)
            expected = np.asarray(reference(source.variables, pictures))
            found = call(pictures)
            assert found.shape == expected.shape and found.dtype == np.float32
            differences[str(count)] = float(np.abs(found - expected).max())
            largest = max(largest, float(np.abs(expected).max()))
    bound = TOLERANCE * max(1.0, largest)
    unequal = form.count_unequal(path, source) if form.count_unequal else 0
    return {
        "max_abs_difference": max(differences.values()),
        "bound": bound,
        # A difference that is not a number is not below the bound.
        "passed": all(value <= bound for value in differences.values()) and not unequal,
        "largest_logit": largest,
        "max_abs_difference_by_batch": differences,
        **({"unequal_tensors": unequal} if form.count_unequal else {}),
    }


def _check_report(out: pathlib.Path) -> None:
    """Refuses to let the report take the place of anything but an earlier report."""
    path = out.with_name(REPORT)
    if out.name == REPORT:
        raise errors.InputError(
            f"out: {str(out)!r} is where the report goes; choose another name"
        )
    if not os.path.lexists(path):
        return
    try:
        is_report = "max_abs_difference" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        is_report = False
    if not is_report:
        raise errors.InputError(
            f"out: {str(path)!r} exists and is no report of an export, which would "
            "take its place; choose another folder"
        )


def check_installed(format_name: str) -> None:
    """Raises InputError if a package that the format needs is missing."""
    missing = [
        package
        for package in FORMATS[format_name].packages
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        raise errors.InputError(
            f"format: {format_name!r} needs {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed; "
            "pip install 'ev2[export]'"
        )


def _versions(format_name: str) -> dict[str, str]:
    packages = dict.fromkeys(("jax", *FORMATS[format_name].packages))
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"ev2": ev2.__version__, **versions}


def _size(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files_in = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files_in if file.is_file())

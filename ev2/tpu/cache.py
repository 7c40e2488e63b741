"""Figures of compiled steps, kept on this machine so that none is compiled twice.

A step is known by all that moves its figures: the job itself, the versions of jax and
libtpu, their flags, and the source that the step is made from.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from ev2 import files
from ev2.tpu import compile as tpu

# Files and folders of ev2 that the step is made from; a test follows the imports.
SOURCES = ("models", "errors.py", "evaluation/metrics.py", "progressive.py")
SOURCES += ("sharding.py", "tpu/compile.py", "tpu/slices.py", "train/compile.py")
SOURCES += (
    "train/device_peaks.py",
    "train/early_stopping.py",
    "train/losses.py",
    "train/mixup.py",
)
SOURCES += ("train/optimizer.py", "train/state.py", "train/step.py")
SOURCES += ("train/validate.py",)
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def get_folder() -> pathlib.Path:
    """Returns `ev2/tpu` of the user's cache; it need not exist."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return cache.expanduser() / "ev2" / "tpu"


def get_versions() -> dict[str, str]:
    """Returns the versions of the packages that compile."""
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    return {name: installed.get(name, "") for name in ("jax", "jaxlib", "libtpu")}


def make_key(job: tpu.CompileRequest) -> str:
    """Returns the name of the job's figures: hex digits."""
    known = {
        "job": dataclasses.asdict(job),
        "versions": get_versions(),
        "flags": {name: os.environ.get(name, "") for name in _FLAGS},
        "sources": _digest_sources(),
    }
    text = json.dumps(known, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _digest_sources() -> str:
    root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for name in SOURCES:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def read(job: tpu.CompileRequest) -> dict[str, Any] | None:
    """Returns the figures of the job with `"cached": True`, or None."""
    try:
        kept = json.loads((get_folder() / f"{make_key(job)}.json").read_text())
        return {**kept["figures"], "cached": True}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: it is compiled again


def cached(
    compile_job: Callable[[tpu.CompileRequest], dict[str, Any]],
) -> Callable[[tpu.CompileRequest], dict[str, Any]]:
    """Returns `compile_job` that keeps what it finds; figures gain "cached"."""

    def find(job: tpu.CompileRequest) -> dict[str, Any]:
        kept = read(job)
        if kept is not None:
            return kept
        figures = compile_job(job)
        document = {"job": dataclasses.asdict(job), "figures": figures}
        path = get_folder() / f"{make_key(job)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, json.dumps(document, indent=1).encode())
        return {**figures, "cached": False}

    return find

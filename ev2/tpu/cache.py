"""Caches the figures of compiled steps on this machine.

The key covers everything that the figures depend on: the request, the versions of jax
and libtpu, their flags, and the source of the step.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from typing import Any

from ev2 import files
from ev2.tpu import compile as tpu_compile

# Source files of the step in ev2; a test follows the imports.
SOURCES = (
    *("models", "errors.py", "evaluation/metrics.py", "progressive.py", "sharding.py"),
    *("tpu/compile.py", "tpu/slices.py", "train/compile.py", "train/device_peaks.py"),
    *("train/early_stopping.py", "train/losses.py", "train/mixup.py"),
    *("train/optimizer.py", "train/state.py", "train/step.py", "train/validate.py"),
)
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def get_folder() -> pathlib.Path:
    """Returns `ev2/tpu` in the user's cache, which may not exist."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return cache.expanduser() / "ev2" / "tpu"


def get_versions() -> dict[str, str]:
    """Returns the versions of the packages that compile."""
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    return {name: installed.get(name, "") for name in ("jax", "jaxlib", "libtpu")}


def make_key(request: tpu_compile.CompileRequest) -> str:
    """Returns the key of a request's figures as hex digits."""
    parts = {
        "job": dataclasses.asdict(request),
        "versions": get_versions(),
        "flags": {name: os.environ.get(name, "") for name in _FLAGS},
        "sources": digest_sources(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def digest_sources() -> str:
    """Returns the hash of the files of `SOURCES`."""
    root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for source in (root / name for name in SOURCES):
        for path in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def compile_cached(request: tpu_compile.CompileRequest) -> dict[str, Any]:
    """Returns the cached figures of a request, or compiles it.

    Adds "cached" to the figures of `compile.compile_apart`. A damaged file is replaced.
    """
    path = get_folder() / f"{make_key(request)}.json"
    try:
        return {**json.loads(path.read_text())["figures"], "cached": True}
    except (OSError, ValueError, KeyError, TypeError):
        figures = tpu_compile.compile_apart(request)
    document = {"job": dataclasses.asdict(request), "figures": figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps(document, indent=1).encode())
    return {**figures, "cached": False}

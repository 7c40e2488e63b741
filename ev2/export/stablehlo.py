"""StableHLO, written by `jax.export`: one file for CPU, CUDA and TPU.

    logits = jax.export.deserialize(open(path, "rb").read()).call(images)

The batch is symbolic; a depthwise convolution has its own form on each platform.
"""

import os
import pathlib
from collections.abc import Callable

import jax
import jax.export
import numpy as np

from ev2.export.servable import Servable

PLATFORMS = ("cpu", "cuda", "tpu")


def write(source: Servable, path: os.PathLike) -> None:
    """Writes the file `path`."""
    export = jax.export.export(jax.jit(source.logits), platforms=PLATFORMS)
    pathlib.Path(path).write_bytes(export(source.abstract_images).serialize())


def load(path: os.PathLike, source: Servable) -> Callable:
    """Returns the function of the file `path`, uint8 images to logits."""
    del source
    content = bytearray(pathlib.Path(path).read_bytes())
    call = jax.jit(jax.export.deserialize(content).call)
    return lambda images: np.asarray(call(images))

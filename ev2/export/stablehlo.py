"""A StableHLO program as `jax.export` writes it: one file for CPU, CUDA and TPU.

    logits = jax.export.deserialize(open(path, "rb").read()).call(pictures)

The batch is symbolic; a depthwise convolution has its own form on each platform.
"""

import pathlib
from collections.abc import Callable

import jax
import jax.export
import numpy as np

from ev2.export import program as programs

PLATFORMS = ("cpu", "cuda", "tpu")


def write(program: programs.Program, path: pathlib.Path) -> None:
    """Writes `program` to the file `path`."""
    export = jax.export.export(jax.jit(program.logits), platforms=PLATFORMS)
    path.write_bytes(export(programs.symbolic_pictures(program)).serialize())


def load(path: pathlib.Path, program: programs.Program) -> Callable:
    """Returns the function, uint8 pictures to logits, that `path` holds."""
    del program
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(call(images))

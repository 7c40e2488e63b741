"""Weights alone, as safetensors under timm's names.

    timm.create_model(NAME, num_classes=N, checkpoint_path=path)    # strict

timm's EfficientNets that pad as ours do are called `tf_efficientnet*`.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ev2 import errors
from ev2.checkpoint.published import tensor_names as names
from ev2.export import program as programs


def write(program: programs.Program, path: pathlib.Path) -> None:
    """Writes the weights of `program`.

    Model, preprocessing and class names go into the metadata, so that ev2 reads back
    what it wrote; see `models.readers`.
    """
    from safetensors import numpy as safetensors

    tensors = {}
    for tensor in _table(program):
        value: Any = program.variables
        for key in tensor.path:
            value = value[key]
        theirs = tensor.to_theirs(np.asarray(value))
        tensors[tensor.name] = np.ascontiguousarray(theirs)
    keys = ("model", "preprocessing", "class_names")
    about = {key: program.meta[key] for key in keys if key in program.meta}
    metadata = {"format": "pt", "ev2": json.dumps(about)}
    path.write_bytes(safetensors.save(tensors, metadata))


def load(path: pathlib.Path, program: programs.Program) -> Callable:
    """Returns the program's function with the weights read back from `path`."""
    variables, call = read(path, program), jax.jit(program.apply)
    return lambda images: np.asarray(call(variables, images))


def count_unequal(path: pathlib.Path, program: programs.Program) -> int:
    """Returns how many tensors of `path` are not, bit for bit, those of `program`."""
    equal = jax.tree.map(np.array_equal, dict(program.variables), read(path, program))
    return sum(not leaf for leaf in jax.tree.leaves(equal))


def read(path: pathlib.Path, program: programs.Program) -> dict[str, Any]:
    """Returns `{"params", "batch_stats"}` of the file `path`."""
    from safetensors import numpy as safetensors

    tensors = safetensors.load_file(path)
    variables: dict[str, Any] = {}
    for tensor in _table(program):
        folder = variables
        for key in tensor.path[:-1]:
            folder = folder.setdefault(key, {})
        value = tensor.to_ours(tensors.pop(tensor.name))
        folder[tensor.path[-1]] = value
    assert not tensors, sorted(tensors)
    return variables


def _table(program: programs.Program) -> list[names.Tensor]:
    """The tensors that there are: without classes, all but the classifier."""
    arch = program.model.arch
    own = "symmetric" if arch.is_resnet else "same"
    if arch.padding != own:
        raise errors.InputError(
            f"format: 'safetensors' has timm's names, and timm's {program.model.name} "
            f"pads otherwise than this network ({arch.padding}); choose another format"
        )
    table = names.timm(arch).tensors(arch)
    return [t for t in table if t.path[1] in program.variables[t.path[0]]]

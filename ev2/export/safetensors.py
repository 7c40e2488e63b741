"""Weights alone, as safetensors under timm's names.

    timm.create_model(NAME, num_classes=N, checkpoint_path=path)    # strict

timm's EfficientNets that pad as ours do are called `tf_efficientnet*`.
"""

import functools
import json
import operator
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ev2 import errors
from ev2.checkpoint.published import tensor_names
from ev2.export.servable import Servable


def write(source: Servable, path: os.PathLike) -> None:
    """Writes the weights of `source`.

    Model, preprocessing and class names go into the file's metadata, so that ev2 reads
    them back; see `published.formats`.
    """
    from safetensors import numpy as safetensors

    tensors = {}
    for tensor in _tensors_of(source):
        value = functools.reduce(operator.getitem, tensor.path, source.variables)
        published = tensor.to_published(np.asarray(value))
        tensors[tensor.name] = np.ascontiguousarray(published)
    keys = ("model", "preprocessing", "class_names")
    metadata = {key: source.metadata[key] for key in keys if key in source.metadata}
    content = safetensors.save(tensors, {"format": "pt", "ev2": json.dumps(metadata)})
    pathlib.Path(path).write_bytes(content)


def load(path: os.PathLike, source: Servable) -> Callable:
    """Returns the function of `source` with the weights read back from `path`."""
    variables, call = read(path, source), jax.jit(source.apply)
    return lambda images: np.asarray(call(variables, images))


def count_unequal(path: os.PathLike, source: Servable) -> int:
    """Returns the number of tensors in `path` that differ from `source` in any bit."""
    equal = jax.tree.map(np.array_equal, dict(source.variables), read(path, source))
    return sum(not leaf for leaf in jax.tree.leaves(equal))


def read(path: os.PathLike, source: Servable) -> dict[str, Any]:
    """Returns `{"params", "batch_stats"}` of the file `path`."""
    from safetensors import numpy as safetensors

    tensors = safetensors.load_file(path)
    flat = {t.path: t.to_ours(tensors.pop(t.name)) for t in _tensors_of(source)}
    assert not tensors, sorted(tensors)
    return tensor_names.nest(flat)


def _tensors_of(source: Servable) -> list[tensor_names.PublishedTensor]:
    """Returns the network's tensors in timm's file; no classifier without classes."""
    arch = source.model.arch
    if arch.padding != ("symmetric" if arch.is_resnet else "same"):
        raise errors.InputError(
            f"format: 'safetensors' has timm's names, and timm's {arch.name} pads "
            f"otherwise than this network ({arch.padding}); choose another format"
        )
    tensors = tensor_names.timm_scheme(arch).tensors(arch)
    return [t for t in tensors if t.path[1] in source.variables[t.path[0]]]

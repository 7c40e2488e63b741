"""Reads published weight files as arrays by name.

Names lose their differences between files: the model's scope of a released checkpoint,
and the additions and renamings of Keras's versions.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ev2 import errors
from ev2.checkpoint.published import pytorch

FORMATS = (
    "a released TensorFlow checkpoint (prefix, folder or .tgz), a Keras .h5,"
    " .weights.h5 or .keras file, or PyTorch tensors (.safetensors, .pth)"
)
_AVERAGED = "/ExponentialMovingAverage"
_KERAS_VARIABLES = {  # in the order of a layer's `vars` in .weights.h5
    "norm": ("gamma", "beta", "moving_mean", "moving_variance"),
    "input": ("mean", "variance", "count"),
    "other": ("kernel", "bias"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """The content of a published weight file.

    Attributes:
        kind: "released", "keras" or "torch".
        tensors: arrays by name.
        left_out: names that are not weights of a network, each with the reason.
        has_both: True if the file holds EMA and raw weights.
        metadata: of a file that `ev2 export` wrote: "model", "preprocessing" and
            "class_names" of its checkpoint.
    """

    kind: str
    tensors: dict[str, np.ndarray]
    left_out: dict[str, str]
    has_both: bool = False
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


def is_published(path: str) -> bool:
    """Returns True if `path` looks like a published weight file, without reading it."""
    return _find_reader(path) is not None


def read(path: str, *, averaged: bool = True) -> PublishedFile:
    """Reads a published file.

    Args:
        path: see `FORMATS`.
        averaged: reads EMA weights instead of raw ones, if the file has both.

    Raises:
        InputError: the file is missing, corrupt, of unknown format or a pickle that
            would run code, or it has no EMA weights.
    """
    reader = _find_reader(path)
    if reader is None:
        exists = os.path.exists(path)
        problem = "is not a weight file" if exists else "does not exist"
        raise errors.InputError(f"source: {path!r} {problem}; give {FORMATS}")
    try:
        return reader(path, averaged)
    except pytorch.UnsafeError as error:
        raise errors.InputError(
            f"source: {path!r} is refused: {error}, and a weight file has no need to"
            " run code; save the state dict alone, or give .safetensors"
        ) from error
    except errors.InputError:
        raise
    except Exception as error:  # the libraries raise many types for corrupt files
        reason = " ".join(str(error).split())[:200]
        raise errors.InputError(
            f"source: {path!r} cannot be read, it is truncated or corrupt ({reason});"
            " fetch it again"
        ) from error


def _find_reader(path: str) -> Callable[[str, bool], PublishedFile] | None:
    if _checkpoint_prefix(path):
        return _read_released
    endings = {
        (".pth", ".pt", ".bin", ".pth.tar"): _read_torch,  # the last is no archive
        (".tgz", ".tar.gz", ".tar"): _read_released,
        (".h5", ".hdf5", ".keras"): _read_keras,
        (".safetensors",): _read_safetensors,
    }
    fits = [r for ends, r in endings.items() if path.lower().endswith(ends)]
    return fits[0] if fits and os.path.isfile(path) else None


def _is_prefix(path: str) -> bool:
    return os.path.isfile(f"{path}.index")


def _checkpoint_prefix(path: str) -> str | None:
    """Returns the TensorFlow checkpoint at `path`: a prefix, or a folder's newest."""
    if _is_prefix(path):
        return path
    indices = list(pathlib.Path(path).glob("*.index")) if os.path.isdir(path) else []
    if not indices:
        return None
    state = pathlib.Path(path, "checkpoint")  # names the newest, in quotes
    text = state.read_text(errors="replace") if state.is_file() else ""
    named = os.path.join(path, os.path.basename(text.partition('"')[2].split('"')[0]))
    newest = max(indices, key=lambda index: (_step(index.stem), index.stem))
    return named if _is_prefix(named) else str(newest).removesuffix(".index")


def _step(prefix: str) -> int:
    """Returns the number that a checkpoint's name ends with; -1 without one."""
    number = re.search(r"\d+$", prefix)
    return int(number[0]) if number else -1


@contextlib.contextmanager
def _unpacked(path: str) -> Iterator[str]:
    """Yields the checkpoint prefix at `path`, unpacked if it is an archive."""
    prefix = _checkpoint_prefix(path)
    if prefix:
        yield prefix
        return
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
        for member in archive.getmembers():
            base = os.path.basename(member.name)
            of_checkpoint = ".data-" in base or base.endswith(".index")
            if member.isfile() and (of_checkpoint or base == "checkpoint"):
                member.name = base  # without the archive's folders
                archive.extract(member, folder, filter="data")
        prefix = _checkpoint_prefix(folder)
        if prefix is None:
            raise ValueError("the archive holds no TensorFlow checkpoint")
        yield prefix


def _read_released(path: str, averaged: bool) -> PublishedFile:
    from ev2.data.tensorflow import tf  # the format's own reader

    tensors, left_out = {}, {}
    with _unpacked(path) as prefix:
        reader = tf.train.load_checkpoint(prefix)
        names = sorted(reader.get_variable_to_shape_map())
        stems = [name for name in names if name.endswith("stem/conv2d/kernel")]
        scopes = {name.partition("/")[0] for name in stems}
        scope = f"{scopes.pop() if len(scopes) == 1 else ''}/"
        if averaged and not any(name.endswith(_AVERAGED) for name in names):
            raise errors.InputError(
                f"source: {path!r} has no EMA weights; ask for the raw ones (--raw)"
            )
        for name in names:
            plain = name.removesuffix(_AVERAGED)
            if not plain.startswith(scope):
                left_out[name] = "not of the network"
            elif (plain != name) != averaged:
                left_out[name] = "raw; the average is used" if averaged else "averaged"
            elif plain.endswith(("/RMSProp", "/RMSProp_1", "/Momentum")):
                left_out[name] = "of the optimizer"
            else:
                tensors[_plain_name(plain[len(scope) :])] = reader.get_tensor(name)
    sets = {name.endswith(_AVERAGED) for name in names if name.startswith(scope)}
    return PublishedFile(
        kind="released", tensors=tensors, left_out=left_out, has_both=len(sets) == 2
    )


def _plain_name(name: str) -> str:
    """Returns the name as most versions of Keras write it, without counters."""
    name = name.removesuffix(":0").replace("depthwise_kernel", "kernel")
    name = re.sub(r"^normalization_\d+/", "normalization/", name)
    return name.replace("dwconv2/", "dwconv/")  # of V2


def _read_keras(path: str, averaged: bool) -> PublishedFile:
    del averaged
    import h5py  # comes with TensorFlow

    if not zipfile.is_zipfile(path):
        with h5py.File(path) as file:
            return _keras_tensors(file)
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as stream:
        with h5py.File(stream) as file:
            return _keras_tensors(file)


def _keras_tensors(file) -> PublishedFile:
    tensors, left_out = {}, {}

    def visit(name: str, item) -> None:
        if not hasattr(item, "shape"):
            return  # a group
        *outer, layer, leaf = name.split("/")
        if "optimizer" in name.split("/")[0]:
            left_out[name] = "of the optimizer"
        elif layer == "vars":  # .weights.h5 and .keras number a layer's variables
            variables = item.parent.attrs.get("name", outer[-1])
            kind = "norm" if "batch_norm" in outer[-1] else "other"
            kind = "input" if outer[-1].startswith("normalization") else kind
            leaf = _KERAS_VARIABLES[kind][int(leaf)]
            tensors[_plain_name(f"{variables}/{leaf}")] = np.asarray(item)
        else:
            tensors[_plain_name(f"{layer}/{leaf}")] = np.asarray(item)

    file.visititems(visit)
    return PublishedFile(kind="keras", tensors=tensors, left_out=left_out)


def _read_safetensors(path: str, averaged: bool) -> PublishedFile:
    del averaged
    import safetensors

    with safetensors.safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = json.loads((file.metadata() or {}).get("ev2", "{}"))
    return _torch_file(tensors, metadata=metadata)


def _read_torch(path: str, averaged: bool) -> PublishedFile:
    tensors, has_both = pytorch.read(path, averaged=averaged)
    return _torch_file(tensors, has_both=has_both)


def _torch_file(tensors: dict[str, np.ndarray], **options: Any) -> PublishedFile:
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    counters = [n for n in tensors if n.endswith(("num_batches_tracked", "n_averaged"))]
    for name in counters:
        del tensors[name]
    left_out = dict.fromkeys(counters, "a counter")
    return PublishedFile(kind="torch", tensors=tensors, left_out=left_out, **options)

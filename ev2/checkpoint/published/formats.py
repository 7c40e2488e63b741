"""Published weight files as named arrays: which kind a file is, and what it holds.

Names come out free of what differs from file to file: the model's scope of a released
checkpoint, what versions of Keras add or rename.
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
from collections.abc import Iterator
from typing import Any

import numpy as np

from ev2 import errors
from ev2.checkpoint.published import pytorch as torch_file

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
class File:
    """What a file holds.

    Attributes:
        kind: "released", "keras" or "torch".
        tensors: arrays by name.
        left_out: names that are no weights of a network, and why.
        has_both: whether it holds running averages and raw values.
        own: of a file that `ev2 export` wrote: "model", "preprocessing" and
            "class_names" of its checkpoint.
    """

    kind: str
    tensors: dict[str, np.ndarray]
    left_out: dict[str, str]
    has_both: bool = False
    own: dict[str, Any] = dataclasses.field(default_factory=dict)


def is_published(path: str) -> bool:
    """Whether `path` looks like a published weight file, without reading it."""
    return _reader(path) is not None


def read(path: str, *, averaged: bool = True) -> File:
    """Reads a published file.

    Args:
        path: see `FORMATS`.
        averaged: where a file has both, whether to take the running averages, which
            its accuracy belongs to, or the raw values.

    Raises:
        InputError: there is no such file, it is damaged, of no known format, a pickle
            that would run code, or it has no averaged values.
    """
    reader = _reader(path)
    if reader is None:
        exists = os.path.exists(path)
        problem = "is not a weight file" if exists else "does not exist"
        raise errors.InputError(f"source: {path!r} {problem}; give {FORMATS}")
    try:
        return reader(path, averaged)
    except torch_file.UnsafeError as error:
        raise errors.InputError(
            f"source: {path!r} is refused: {error}, and a weight file has no need to"
            " run code; save the state dict alone, or give .safetensors"
        ) from error
    except errors.InputError:
        raise
    except Exception as error:  # whatever the libraries make of a damaged file
        reason = " ".join(str(error).split())[:200]
        raise errors.InputError(
            f"source: {path!r} cannot be read, it is truncated or corrupt ({reason});"
            " fetch it again"
        ) from error


def _reader(path: str):
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


def _index(prefix: str) -> bool:
    return os.path.isfile(f"{prefix}.index")


def _checkpoint_prefix(path: str) -> str | None:
    """The TensorFlow checkpoint at `path`: a prefix, or the newest in a folder."""
    if _index(path):
        return path
    found = list(pathlib.Path(path).glob("*.index")) if os.path.isdir(path) else []
    if not found:
        return None
    state = pathlib.Path(path, "checkpoint")  # names the newest, in quotes
    text = state.read_text(errors="replace") if state.is_file() else ""
    named = os.path.join(path, os.path.basename(text.partition('"')[2].split('"')[0]))
    newest = max(found, key=lambda file: (_step(file.stem), file.stem))
    return named if _index(named) else str(newest).removesuffix(".index")


def _step(prefix: str) -> int:
    """The number that a checkpoint's name ends with; -1 if it has none."""
    number = re.search(r"\d+$", prefix)
    return int(number[0]) if number else -1


@contextlib.contextmanager
def _unpacked(path: str) -> Iterator[str]:
    """The checkpoint prefix at `path`, unpacked for a while if it is an archive."""
    prefix = _checkpoint_prefix(path)
    if prefix:
        yield prefix
        return
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
        for member in archive.getmembers():
            base = os.path.basename(member.name)
            of_checkpoint = ".data-" in base or base.endswith(".index")
            if member.isfile() and (of_checkpoint or base == "checkpoint"):
                member.name = base  # no path of the archive's own
                archive.extract(member, folder, filter="data")
        prefix = _checkpoint_prefix(folder)
        if prefix is None:
            raise ValueError("the archive holds no TensorFlow checkpoint")
        yield prefix


def _read_released(path: str, averaged: bool) -> File:
    from ev2.data.tensorflow import tf  # the format's own reader

    tensors, left_out = {}, {}
    with _unpacked(path) as prefix:
        reader = tf.train.load_checkpoint(prefix)
        names = reader.get_variable_to_shape_map()
        scopes = {
            n.partition("/")[0] for n in names if n.endswith("stem/conv2d/kernel")
        }
        scope = scopes.pop() if len(scopes) == 1 else ""
        if averaged and not any(name.endswith(_AVERAGED) for name in names):
            raise errors.InputError(
                f"source: {path!r} has no averaged values; ask for the raw ones (--raw)"
            )
        for name in sorted(names):
            plain = name.removesuffix(_AVERAGED)
            is_average = plain != name
            if not plain.startswith(f"{scope}/"):
                left_out[name] = "not of the network"
            elif is_average != averaged:
                left_out[name] = (
                    "averaged" if is_average else "raw; the average is used"
                )
            elif plain.rpartition("/")[2] in ("RMSProp", "RMSProp_1", "Momentum"):
                left_out[name] = "of the optimizer"
            else:
                tensors[_plain(plain[len(scope) + 1 :])] = reader.get_tensor(name)
    both = {n.endswith(_AVERAGED) for n in names if n.startswith(f"{scope}/")}
    return File(
        kind="released", tensors=tensors, left_out=left_out, has_both=len(both) == 2
    )


def _plain(name: str) -> str:
    """The name free of Keras's versions and counters; V2 has "dwconv2" as "dwconv"."""
    name = name.removesuffix(":0").replace("depthwise_kernel", "kernel")
    name = re.sub(r"^normalization_\d+/", "normalization/", name)
    return name.replace("dwconv2/", "dwconv/")


def _read_keras(path: str, averaged: bool) -> File:
    del averaged
    import h5py  # comes with TensorFlow

    if not zipfile.is_zipfile(path):
        with h5py.File(path) as file:
            return _keras_tensors(file)
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as stream:
        with h5py.File(stream) as file:
            return _keras_tensors(file)


def _keras_tensors(file) -> File:
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
            tensors[_plain(f"{variables}/{leaf}")] = np.asarray(item)
        else:
            tensors[_plain(f"{layer}/{leaf}")] = np.asarray(item)

    file.visititems(visit)
    return File(kind="keras", tensors=tensors, left_out=left_out)


def _read_safetensors(path: str, averaged: bool) -> File:
    del averaged
    import safetensors

    with safetensors.safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        own = json.loads((file.metadata() or {}).get("ev2", "{}"))
    return dataclasses.replace(_torch_file(tensors), own=own)


def _read_torch(path: str, averaged: bool) -> File:
    tensors, has_both = torch_file.read(path, averaged=averaged)
    return dataclasses.replace(_torch_file(tensors), has_both=has_both)


def _torch_file(tensors: dict[str, np.ndarray]) -> File:
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    counts = ("num_batches_tracked", "n_averaged")
    counters = [name for name in tensors if name.endswith(counts)]
    kept = {name: value for name, value in tensors.items() if name not in counters}
    left_out = dict.fromkeys(counters, "a counter")
    return File(kind="torch", tensors=kept, left_out=left_out)

"""Reads the tensors of a PyTorch file (`.pth`) without PyTorch.

A `.pth` file is a pickle, which may name any function to call on loading. Here a
pickle can name only the functions that describe tensors, and our own run in their
place, as in `torch.load(weights_only=True)`. Both forms are read: the zip archive of
PyTorch 1.6 and later, and the stream of pickles before it.
"""

import collections
import functools
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

_MAX_PICKLE_BYTES = 100_000_000  # of names and shapes: real ones take kilobytes
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    **{"HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16},
    **{"FloatStorage": np.float32, "DoubleStorage": np.float64},
    **{"CharStorage": np.int8, "ShortStorage": np.int16, "IntStorage": np.int32},
    **{"LongStorage": np.int64, "ByteStorage": np.uint8, "BoolStorage": np.bool_},
}


class UnsafeError(ValueError):
    """Raised for a pickle that names something other than tensors."""


class _Storage(NamedTuple):
    """An array of bytes that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int  # elements


class _View(NamedTuple):
    """A tensor: elements of a storage, with strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_AVERAGED = ("state_dict_ema", "model_ema")  # timm's and torchvision's scripts
_RAW = ("state_dict", "model")


def read(path: str, *, averaged: bool = True) -> tuple[dict[str, np.ndarray], bool]:
    """Returns a state dict, and True if the file has both EMA and raw weights.

    Training scripts store a state dict under a key of their own, and some store the
    EMA weights beside it; `averaged` chooses between the two.

    Raises:
        UnsafeError: the file names a function or class that tensors do not need.
        ValueError: the file is truncated, is not a PyTorch file, or has no tensors.
    """
    try:
        loaded, load = _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path)
        views, has_both = _find_state_dict(loaded, averaged)
        return {name: _tensor(name, v, load) for name, v in views.items()}, has_both
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ValueError(f"not a whole PyTorch file ({error})") from error
    except (AttributeError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a PyTorch file ({error})") from error


class _Unpickler(pickle.Unpickler):
    """Resolves the names that a state dict needs, and no others."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _View(
                storage, offset, tuple(shape), tuple(strides)
            )
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda view, *_: view
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        raise UnsafeError(f"it asks to call {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise UnsafeError(f"it refers to {kind!r}")
        self.storages[str(key)] = _Storage(str(key), dtype, int(size))
        return self.storages[str(key)]


_Load = Callable[[_Storage], np.ndarray]


def _read_zip(path: str) -> tuple[Any, _Load]:
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(names) != 1 or archive.getinfo(names[0]).file_size > _MAX_PICKLE_BYTES:
        raise ValueError("not a PyTorch file (no table of tensors)")
    folder = names[0].removesuffix("data.pkl")

    @functools.lru_cache(maxsize=1)  # views of one storage follow each other
    def load(storage: _Storage) -> np.ndarray:
        name = f"{folder}data/{storage.key}"
        size = storage.size * storage.dtype.itemsize
        # A small archive may unpack to gigabytes; the size of a tensor is known.
        if archive.getinfo(name).file_size != size:
            raise ValueError("not a whole PyTorch file (a storage of another size)")
        return np.frombuffer(archive.read(name), storage.dtype)

    return _Unpickler(io.BytesIO(archive.read(names[0]))).load(), load


def _read_old(path: str) -> tuple[Any, _Load]:
    with open(path, "rb") as file:
        if file.read(2) == b"PK":  # "P" would be an instruction to a pickle
            raise ValueError("not a whole PyTorch file (an archive without its end)")
        file.seek(0)
        magic, _, _ = (_Unpickler(file).load() for _ in range(3))
        if magic != _LEGACY_MAGIC:
            raise ValueError("not a PyTorch file")
        unpickler = _Unpickler(file)
        loaded, storages = unpickler.load(), unpickler.storages
        keys = _Unpickler(file).load()
        arrays = {key: _read_storage(file, storages.get(key)) for key in keys}
    return loaded, lambda storage: arrays[storage.key]


def _read_storage(file: BinaryIO, storage: _Storage | None) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    if storage is None or count != storage.size:
        raise ValueError("not a whole PyTorch file (a storage of another size)")
    content = file.read(count * storage.dtype.itemsize)
    if len(content) < count * storage.dtype.itemsize:
        raise ValueError("not a whole PyTorch file (its last bytes are missing)")
    return np.frombuffer(content, storage.dtype)


def _find_state_dict(loaded: Any, averaged: bool) -> tuple[dict[str, _View], bool]:
    """Returns the chosen state dict, and True if the file has EMA and raw weights."""
    state = loaded if isinstance(loaded, dict) else {}
    sets = [key for key in (*_AVERAGED, *_RAW) if isinstance(state.get(key), dict)]
    both = any(k in sets for k in _AVERAGED) and any(k in sets for k in _RAW)
    if sets:
        state = state[sets[0 if averaged else -1]]
    views = {str(k): view for k, view in state.items() if isinstance(view, _View)}
    if not views:
        raise ValueError("it holds no tensors by name")
    return views, both


def _tensor(name: str, view: _View, load: _Load) -> np.ndarray:
    values = load(view.storage)
    sides = zip(view.shape, view.strides, strict=True)
    end = view.offset + sum((side - 1) * stride for side, stride in sides)
    if view.offset < 0 or min(view.strides, default=0) < 0 or end >= len(values):
        raise ValueError(f"{name} reaches beyond its bytes")
    if math.prod(view.shape) > len(values):  # a stride of 0 makes much of little
        raise ValueError(f"{name} has more elements than it has bytes for")
    return np.lib.stride_tricks.as_strided(
        values[view.offset :],
        view.shape,
        [stride * values.itemsize for stride in view.strides],
        writeable=False,
    ).copy()

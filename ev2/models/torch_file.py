"""Tensors of a PyTorch file (`.pth`), without PyTorch and without running its code.

A `.pth` file is a pickle, which may name any function to be called on loading. Here a
pickle can name nothing but the few that describe tensors, and those are replaced by
our own. Why not `torch.load(weights_only=True)`: PyTorch is gigabytes to install, for
a file that is a table of names and bytes.

Both forms are read: the zip archive of PyTorch 1.6 and later, and the stream of
pickles before it.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "ShortStorage": np.int16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "BoolStorage": np.bool_,
}


class UnsafeError(ValueError):
    """The pickle names something other than tensors."""


class _Storage(NamedTuple):
    """Bytes that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int  # elements


class _View(NamedTuple):
    """A tensor: elements of a storage, with strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict by name.

    A dict that holds one under "state_dict" or "model" is looked into, as training
    scripts save them.

    Raises:
        UnsafeError: the file names a function or class that is not a tensor's; the
            message says which.
        ValueError: the file is cut, or is no PyTorch file, or holds no tensors.
    """
    try:
        views, load = _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path)
        return _tensors(views, load)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ValueError(f"not a whole PyTorch file ({error})") from error
    except (AttributeError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a PyTorch file ({error})") from error


class _Unpickler(pickle.Unpickler):
    """Knows the names that a state dict needs, and no others."""

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
        return _Storage(str(key), dtype, int(size))


_Load = Callable[[_Storage], np.ndarray]


def _read_zip(path: str) -> tuple[Any, _Load]:
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = [name for name in files if name.endswith("data.pkl")]
    folder = pickled.removesuffix("data.pkl")

    def load(storage: _Storage) -> np.ndarray:
        return np.frombuffer(files[f"{folder}data/{storage.key}"], storage.dtype)

    return _Unpickler(io.BytesIO(files[pickled])).load(), load


def _read_old(path: str) -> tuple[Any, _Load]:
    with open(path, "rb") as file:
        magic, _, _ = (_Unpickler(file).load() for _ in range(3))
        if magic != _LEGACY_MAGIC:
            raise ValueError("not a PyTorch file")
        views, keys = _Unpickler(file).load(), _Unpickler(file).load()
        wanted = {view.storage.key: view.storage for view in _views(views).values()}
        arrays = {key: _read_storage(file, wanted.get(key)) for key in keys}
    return views, lambda storage: arrays[storage.key]


def _read_storage(file: BinaryIO, storage: _Storage | None) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    if storage is None or count != storage.size:
        raise ValueError("not a whole PyTorch file (a storage of another size)")
    content = file.read(count * storage.dtype.itemsize)
    if len(content) < count * storage.dtype.itemsize:
        raise ValueError("not a whole PyTorch file (its last bytes are missing)")
    return np.frombuffer(content, storage.dtype)


def _views(loaded: Any) -> dict[str, _View]:
    """The state dict in what was loaded."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    found = loaded.items() if isinstance(loaded, dict) else ()
    views = {str(name): view for name, view in found if isinstance(view, _View)}
    if not views:
        raise ValueError("it holds no tensors by name")
    return views


def _tensors(loaded: Any, load: _Load) -> dict[str, np.ndarray]:
    tensors = {}
    for name, view in _views(loaded).items():
        values = load(view.storage)
        end = view.offset + sum(
            (side - 1) * stride
            for side, stride in zip(view.shape, view.strides, strict=True)
        )
        if view.offset < 0 or min(view.strides, default=0) < 0 or end >= len(values):
            raise ValueError(f"{name} reaches beyond its bytes")
        tensors[name] = np.lib.stride_tricks.as_strided(
            values[view.offset :],
            view.shape,
            [stride * values.itemsize for stride in view.strides],
            writeable=False,
        ).copy()
    return tensors

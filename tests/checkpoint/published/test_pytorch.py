"""Files as PyTorch writes them, made here byte by byte, and unsafe pickles."""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from ev2.checkpoint.published import formats as readers
from ev2.checkpoint.published import pytorch as torch_file

WEIGHT = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
COUNTER = np.array(7, np.int64)


class Global:
    """A name for the pickle to look up: written as `module.name`, never imported."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Storage:
    def __init__(self, key, kind, values):
        self.key, self.kind, self.values = key, kind, values


class Call:
    """A reduced object: a name and its arguments."""

    def __init__(self, function, *args):
        self.function, self.args = function, args


class Pickler(pickle._Pickler):
    """Python's pickler in Python, with names that need not exist here."""

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind = Global("torch", obj.kind)
            return "storage", kind, obj.key, "cpu", len(obj.values)
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
            return
        if isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.REDUCE)
            return
        super().save(obj, save_persistent_id)


def pickled(obj):
    stream = io.BytesIO()
    Pickler(stream, 2).dump(obj)
    return stream.getvalue()


def tensor(storage, offset, shape, strides):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, strides, False, None)


def state_dict():
    """Returns a transposed tensor, one behind an offset, a scalar, and the storages."""
    flat = Storage("0", "FloatStorage", np.concatenate([WEIGHT.ravel(), WEIGHT[0, 0]]))
    count = Storage("1", "LongStorage", COUNTER.ravel())
    state = collections.OrderedDict()
    state["turned"] = tensor(flat, 0, (4, 3, 2), (1, 4, 12))
    state["tail"] = tensor(flat, 24, (4,), (1,))
    state["count"] = tensor(count, 0, (), ())
    return state, [flat, count]


def write_zip(path, obj, storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", pickled(obj))
        for storage in storages:
            archive.writestr(f"weights/data/{storage.key}", storage.values.tobytes())


def write_old(path, obj, storages):
    magic = 0x1950A86A20F9469CFC6C
    content = b"".join(map(pickled, (magic, 1001, {"little_endian": True}, obj)))
    content += pickled([storage.key for storage in storages])
    for storage in storages:
        content += struct.pack("<q", len(storage.values)) + storage.values.tobytes()
    path.write_bytes(content)


@pytest.fixture(params=[write_zip, write_old])
def write(request):
    return request.param


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
def test_tensors_are_read_unchanged(write, wrapped, tmp_path):
    state, storages = state_dict()
    path = tmp_path / "weights.pth"
    write(path, {wrapped: state, "epoch": 3} if wrapped else state, storages)
    tensors, has_both = torch_file.read(str(path))
    assert not has_both and list(tensors) == ["turned", "tail", "count"]
    np.testing.assert_array_equal(tensors["turned"], WEIGHT.transpose(2, 1, 0))
    np.testing.assert_array_equal(tensors["tail"], WEIGHT[0, 0])
    assert tensors["count"] == 7 and tensors["count"].dtype == np.int64


@pytest.mark.parametrize("name", [("os", "system"), ("builtins", "eval")])
def test_a_pickle_that_would_run_code_is_refused(write, name, tmp_path):
    state, storages = state_dict()
    state["bad"] = Call(Global(*name), f"echo > {tmp_path}/ran")
    path = tmp_path / "weights.pth"
    write(path, state, storages)
    with pytest.raises(torch_file.UnsafeError, match=".".join(name)):
        torch_file.read(str(path))
    assert not (tmp_path / "ran").exists()


def test_a_tensor_beyond_its_bytes_is_refused(write, tmp_path):
    _, storages = state_dict()
    path = tmp_path / "weights.pth"
    write(path, {"long": tensor(storages[0], 20, (9,), (1,))}, storages[:1])
    with pytest.raises(ValueError, match="long reaches beyond"):
        torch_file.read(str(path))


@pytest.mark.parametrize("keep", [0, 10, 200, -3])
def test_a_cut_file_is_refused(write, keep, tmp_path):
    path = tmp_path / "weights.pth"
    write(path, *state_dict())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="PyTorch file"):
        torch_file.read(str(path))


def test_a_pickle_without_tensors_is_refused(write, tmp_path):
    path = tmp_path / "weights.pth"
    write(path, {"epoch": 3}, [])
    with pytest.raises(ValueError, match="no tensors"):
        torch_file.read(str(path))


def test_averages_beside_raw_values(write, tmp_path):
    storages = [
        Storage(key, "FloatStorage", np.full(3, value, np.float32))
        for key, value in (("0", 1.0), ("1", 2.0))
    ]
    first, second = ({"w": tensor(s, 0, (3,), (1,))} for s in storages)
    path = tmp_path / "weights.pth"
    states = {"state_dict": first, "state_dict_ema": second, "optimizer": [{}]}
    write(path, states, storages)
    found, has_both = torch_file.read(str(path))
    assert has_both and found["w"].tolist() == [2, 2, 2]
    found, _ = torch_file.read(str(path), averaged=False)
    assert found["w"].tolist() == [1, 1, 1]


def test_a_torch_file_called_tar_is_read_as_one(write, tmp_path):
    path = tmp_path / "model_best.pth.tar"
    write(path, *state_dict())
    assert list(readers.read(str(path)).tensors) == ["turned", "tail", "count"]


def test_more_elements_than_stored_are_refused(tmp_path):
    # A stride of 0 repeats one element; a member may unpack to more than declared.
    one = Storage("0", "FloatStorage", np.ones(1, np.float32))
    path = tmp_path / "weights.pth"
    write_zip(path, {"w": tensor(one, 0, (10**6, 10**6), (0, 0))}, [one])
    with pytest.raises(ValueError, match="w has more elements"):
        torch_file.read(str(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled({"w": tensor(one, 0, (1,), (1,))}))
        archive.writestr("a/data/0", bytes(10**7))
    with pytest.raises(ValueError, match="another size"):
        torch_file.read(str(path))

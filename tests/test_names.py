"""pytest tests/test_names.py

Foreign names of our tensors. `golden/timm.json` holds names and shapes as timm 1.0.31
gives them (`timm.create_model(NAME).state_dict()`, without the step counts of the
normalizations); with timm installed they are read again.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

import ev2
from ev2 import arch as architectures
from ev2.models import names
from tests import tiny

GOLDEN = pathlib.Path(__file__).parent / "golden" / "timm.json"
TIMM = {
    "efficientnetv2-b0": "tf_efficientnetv2_b0",
    "efficientnet-b0": "tf_efficientnet_b0",
    "resnet50": "resnet50",
}


def shapes(model):
    """`{path: shape}` of a network's variables."""
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def as_torch(model):
    """`{foreign name: shape}` of a network under timm's names and axes."""
    ours = shapes(model)
    table = names.timm(model.arch)
    assert {tensor.path for tensor in table} == set(ours)
    return {
        tensor.foreign: list(
            names.to_torch(tensor.kind, np.zeros(ours[tensor.path], bool)).shape
        )
        for tensor in table
    }


@pytest.mark.parametrize("name", sorted(TIMM))
def test_names_and_shapes_are_those_of_timm(name):
    golden = json.loads(GOLDEN.read_text())[TIMM[name]]
    assert as_torch(ev2.create_model(name)) == golden


@pytest.mark.parametrize("name", sorted(TIMM))
def test_the_golden_names_are_what_timm_says(name):
    timm = pytest.importorskip(
        "timm", reason="timm is not installed; pip install -e '.[peers]'"
    )
    state = timm.create_model(TIMM[name]).state_dict()
    theirs = {
        key: list(value.shape)
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert theirs == json.loads(GOLDEN.read_text())[TIMM[name]]


@pytest.mark.parametrize("name", ev2.list_models())
def test_every_tensor_has_one_name_of_its_own(name):
    arch = architectures.get(name)
    table = names.timm(arch)
    assert {t.path for t in table} == set(shapes(ev2.create_model(name)))
    assert len({t.path for t in table}) == len({t.foreign for t in table}) == len(table)


def test_block_strings_have_names_too():
    model = ev2.create_model("efficientnetv2-tiny", blocks=tiny.BLOCKS)
    found = as_torch(model)
    assert found["blocks.0.0.conv.weight"] == [16, 16, 3, 3]
    assert found["blocks.1.0.conv_dw.weight"] == [32, 1, 3, 3]
    assert found["blocks.1.0.se.conv_reduce.weight"] == [4, 32, 1, 1]


def test_axes_move_and_move_back():
    conv = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    assert names.to_torch(names.CONV, conv)[6, 4, 1, 2] == conv[1, 2, 4, 6]
    assert names.to_torch(names.CONV, conv).shape == (7, 5, 2, 3)
    dense, vector = np.arange(6).reshape(2, 3), np.arange(4)
    assert names.to_torch(names.DENSE, dense)[2, 1] == dense[1, 2]
    for kind, value in (
        (names.CONV, conv),
        (names.DEPTHWISE, conv[:, :, :1]),
        (names.DENSE, dense),
        (names.VECTOR, vector),
    ):
        back = names.from_torch(kind, names.to_torch(kind, value))
        np.testing.assert_array_equal(back, value)

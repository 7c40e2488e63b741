"""Published names of our tensors.

`golden/timm.json` holds names and shapes of timm 1.0.31 (`state_dict()` without step
counts of the normalizations); with timm installed they are compared again.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

import ev2
from ev2 import errors
from ev2.checkpoint.published import tensor_names as names
from ev2.models import arch as architectures
from tests.helpers import published_files
from tests.helpers import tiny_run as tiny

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "timm.json"


def shapes(model):
    """Returns `{path: shape}` of a network's variables."""
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def as_torch(model):
    """Returns `{published name: shape}` of a network with timm's names and axes."""
    ours = shapes(model)
    table = list(names.timm_scheme(model.arch).tensors(model.arch))
    assert {tensor.path for tensor in table} == set(ours)
    return {t.name: list(t.published_shape(ours[t.path])) for t in table}


@pytest.mark.parametrize("name", sorted(published_files.TIMM))
def test_names_and_shapes_match_timm(name):
    golden = json.loads(GOLDEN.read_text())[published_files.TIMM[name]]
    assert as_torch(ev2.create_model(name)) == golden


@pytest.mark.parametrize("name", sorted(published_files.TIMM))
def test_golden_names_match_timm(name):
    timm = pytest.importorskip(
        "timm", reason="timm is not installed; pip install 'ev2[peers]'"
    )
    state = timm.create_model(published_files.TIMM[name]).state_dict()
    published = {
        key: list(value.shape)
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert published == json.loads(GOLDEN.read_text())[published_files.TIMM[name]]


@pytest.mark.parametrize("name", ev2.list_models())
def test_every_tensor_has_one_name_of_its_own(name):
    arch = architectures.get(name)
    ours = set(shapes(ev2.create_model(name)))
    fits = {
        "released": "silu",
        "keras": "silu",
        "keras_resnet": "",  # the stride is elsewhere: the next test
        "timm": "silu relu6",
        "torchvision": "silu",
        "torch_resnet": "relu",
        "efficientnet_pytorch": "silu relu6" if "v2" not in name else "",
    }
    for scheme, activations in fits.items():
        if arch.activation in activations.split():
            table = list(names.SCHEMES[scheme].tensors(arch))
            assert {t.path for t in table} == ours
            assert len({t.name for t in table}) == len(table) == len(ours)


def test_a_stride_that_a_format_does_not_have_is_refused():
    blocks = ("r1_k3_s2_e4_i64_o256_c3",)
    arch = architectures.get("resnet50", blocks)
    named = [t.name for t in names.SCHEMES["keras_resnet"].tensors(arch)]
    assert "conv2_block1_1_conv/bias" in named
    with pytest.raises(errors.InputError, match="c3' has no name in this format"):
        list(names.timm_scheme(arch).tensors(arch))


def test_block_strings_have_names_too():
    model = ev2.create_model("efficientnetv2-tiny", blocks=tiny.BLOCKS)
    found = as_torch(model)
    assert found["blocks.0.0.conv.weight"] == [16, 16, 3, 3]
    assert found["blocks.1.0.conv_dw.weight"] == [32, 1, 3, 3]
    assert found["blocks.1.0.se.conv_reduce.weight"] == [4, 32, 1, 1]


@pytest.mark.parametrize(
    "framework, kind, shape, index, published",
    [
        # The index of an element in our tensor, and in the file's.
        ("torch", "conv", (2, 3, 5, 7), (1, 2, 4, 6), (6, 4, 1, 2)),
        ("torch", "depthwise", (2, 3, 1, 7), (1, 2, 0, 6), (6, 0, 1, 2)),
        ("torch", "dense", (2, 3), (1, 2), (2, 1)),
        ("torch", "vector", (4,), (3,), (3,)),
        ("tensorflow", "conv", (2, 3, 5, 7), (1, 2, 4, 6), (1, 2, 4, 6)),
        ("tensorflow", "depthwise", (2, 3, 1, 7), (1, 2, 0, 6), (1, 2, 6, 0)),
        ("tensorflow", "dense", (2, 3), (1, 2), (1, 2)),
    ],
)
def test_axes_move_and_move_back(framework, kind, shape, index, published):
    tensor = names.PublishedTensor(
        name="n", path=("params",), kind=kind, framework=framework
    )
    ours = np.arange(np.prod(shape)).reshape(shape)
    moved = tensor.to_published(ours)
    assert moved[published] == ours[index]
    assert moved.shape == tensor.published_shape(shape)
    np.testing.assert_array_equal(tensor.to_ours(moved), ours)

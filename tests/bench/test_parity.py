"""python -m pytest tests/bench/test_parity.py; -m slow for every network and witness

Networks of Keras, timm and torchvision, through their files, against ours.
"""

import importlib.util

import numpy as np
import pytest

from ev2 import errors
from ev2.bench import parity
from ev2.checkpoint.published import convert
from ev2.models import arch

# Keras 3.15 does not know NumPy 2's way to ask for an array.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")

QUICK = ("efficientnetv2-b0",)
OTHERS = [n for n in arch.list_models() if parity.REFERENCES["keras"][0](n)]
OTHERS = [name for name in OTHERS if name not in QUICK]


@pytest.mark.parametrize("name", QUICK)
def test_keras_gives_the_same_logits(name):
    row = parity.compare_one(name, "keras")
    assert np.max(row["max_relative_error"]) < parity.BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_network_of_keras_gives_the_same_logits(name):
    row = parity.compare_one(name, "keras")
    assert np.max(row["max_relative_error"]) < parity.BOUND


def test_keras_has_every_network_that_was_promised():
    assert {*QUICK, *OTHERS} == {
        *(f"efficientnetv2-{size}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l")),
        *(f"efficientnet-b{size}" for size in range(8)),
        *("resnet50", "resnet101", "resnet152"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("witness", ["timm", "torchvision"])
def test_every_network_of_pytorch_gives_the_same_logits(witness):
    if importlib.util.find_spec(witness) is None:
        pytest.skip(f"{witness} is not installed; pip install 'ev2[peers]'")
    table = parity.compare(witnesses=[witness])
    assert len(table["results"]) == {"timm": 24, "torchvision": 14}[witness]
    for row in table["results"]:
        assert np.max(row["max_relative_error"]) < parity.BOUND, row


def test_a_difference_shows(monkeypatch):
    # What is folded in Keras's ResNet left out: the comparison must not pass.
    monkeypatch.setattr(convert, "_fold", lambda found, *_: drop_biases(found))
    row = parity.compare_one("resnet50", "keras")
    assert min(row["max_relative_error"]) > 100 * parity.BOUND


def drop_biases(found):
    for path in [path for path in found if path[-2:] == ("conv", "bias")]:
        del found[path]
    return []


def test_the_table_names_the_worst():
    rows = [
        {"model": "a", "witness": "keras", "matched": 9, "max_relative_error": [1e-6]},
        {"model": "b", "witness": "timm", "matched": 9, "max_relative_error": [3e-5]},
    ]
    text = parity.format_table({"results": rows, "bound": 1e-4, "sizes": [64]})
    assert text.splitlines()[-1] == "largest relative difference 3.0e-05, bound 1e-04"


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_difference_is_an_error(error):
    row = {"model": "a", "witness": "keras", "max_relative_error": [1e-7, error]}
    table = {"results": [row | {"matched": 9}], "bound": 1e-4, "sizes": [64, 75]}
    with pytest.raises(errors.CheckError, match="a: logits differ from keras"):
        parity.check(table)
    row["max_relative_error"] = [1e-7, 1e-6]
    parity.check(table | {"results": [row]})


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"models": ["efficientnetv2-tiny"], "witnesses": ["keras"]}, "is in none of"),
        ({"witnesses": ["mxnet"]}, "witnesses: 'mxnet' is not known"),
        ({"models": ["vgg"], "witnesses": ["keras"]}, "model.name: 'vgg'"),
    ],
)
def test_bad_input(options, complaint):
    with pytest.raises(errors.InputError, match=complaint):
        parity.compare(**options)

"""python -m pytest tests/test_convert.py

Published files to our variables. Files are made from tensors of ours by the names of
each format; that the names and the arithmetic are the real ones is for test_parity.py,
and for the lists of the released checkpoints' variables in this file's own folder.
"""

import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from ev2 import arch, errors
from ev2.models import convert, names
from tests import published

MODEL = published.network()
VARIABLES = published.random_variables(MODEL)
NAME = "efficientnetv2-tiny"


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    """Puts the small network in the table, so that files can be found to be of it."""
    rows = arch.decode(published.BLOCKS)
    table = arch.table._TABLE
    network = dataclasses_replace(table[NAME], rows=rows)
    monkeypatch.setitem(table, NAME, network)


def dataclasses_replace(network, **changes):
    import dataclasses

    return dataclasses.replace(network, **changes)


def assert_same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(wanted))


def of(scheme, variables=VARIABLES):
    return published.tensors(scheme, MODEL, variables)


def write_safetensors(path, values):
    safetensors.save_file(values, path)


WRITERS = [
    ("keras", "weights.h5", published.write_keras_h5),
    ("keras", "small.weights.h5", published.write_keras_v3),
    ("keras", "small.keras", published.write_keras_archive),
    ("timm", "small.safetensors", write_safetensors),
    ("efficientnet_pytorch", "small.safetensors", write_safetensors),
]

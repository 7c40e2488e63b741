"""python -m pytest tests/tpu/test_slices.py"""

import math

import pytest

from ev2 import errors
from ev2.tpu import slices


@pytest.mark.parametrize(
    "name, topology, devices",
    [
        # Cloud's names count cores up to v5p and chips after it; a v4 chip is one
        # device, a v3 chip two.
        ("v2-8", "v2:2x2", 8),
        ("v3-32", "v3:4x4", 32),
        ("v3-2048", "v3:32x32", 2048),
        ("v4-8", "v4:2x2x1", 4),
        ("v5p-16", "v5p:2x2x2", 8),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v5e-16", "v5e:4x4", 16),
        ("v6e-256", "v6e:16x16", 256),
    ],
)
def test_names_of_cloud(name, topology, devices):
    found = slices.find(name)
    assert (found.name, found.topology, found.devices) == (name, topology, devices)


@pytest.mark.parametrize("short", slices.GENERATIONS)
def test_shapes_have_the_chips_that_names_count(short):
    generation = slices.GENERATIONS[short]
    cores_per_chip = {"v2": 2, "v3": 2, "v4": 2, "v5p": 2, "v5e": 1, "v6e": 1}[short]
    for count, shape in generation.shapes.items():
        chips = math.prod(int(side) for side in shape.split("x"))
        assert count == chips * cores_per_chip, shape
    assert list(generation.shapes) == sorted(generation.shapes)


@pytest.mark.parametrize(
    "name, message",
    [
        ("v3-33", "'v3-33'; nearest: v3-32 and v3-64"),
        ("v5litepod-1024", "'v5litepod-1024'; nearest: v5litepod-256"),
        ("v4-4", "'v4-4'; nearest: v4-8"),
        ("v9-8", "'v9-8' is not a slice of Cloud TPU; give one of v2-N, v3-N"),
        ("32", "'32' is not a slice"),
        ("v3-", "'v3-' is not a slice"),
    ],
)
def test_names_that_no_slice_has(name, message):
    with pytest.raises(errors.InputError) as error:
        slices.find(name)
    assert message in str(error.value) and "\n" not in str(error.value)

"""python -m pytest tests/nas/test_space.py

What a search may choose: texts, sizes, draws, bounds, what is refused.
"""

import collections
import dataclasses
import itertools
import math
import random

import jax
import pytest

import ev2
from ev2 import errors
from ev2.models import arch
from ev2.nas import space as spaces

TINY = spaces.Space(backbones=("efficientnetv2-tiny",))
JOINT = spaces.Space(backbones=("efficientnetv2-s", "efficientnet-b4"))
ONE = spaces.Space(  # of one network
    backbones=("efficientnetv2-tiny",),
    operators=("mbconv",),
    layers=(0,),
    kernels=(3,),
    expands=(4,),
)
# The rows of tiny have 1, 1, 2, 2 layers.
TEXT = (
    "efficientnetv2-tiny:r1_k3_s1_e1_i16_o16_c1,r3_k5_s2_e4_i16_o32_c1,"
    "r2_k3_s2_e6_i32_o48_se0.25,r1_k3_s1_e4_i48_o64_c1"
)


COUNT = 147_370  # parameters of tiny with 10 classes, see tests/models/test_models.py


def bounded(low, high):
    """The space of tiny with bounds in shares of its parameters, at 10 classes."""
    bounds = {"min_params": int(low * COUNT), "max_params": int(high * COUNT)}
    return dataclasses.replace(TINY, num_classes=10, **bounds)


def changed(before, after):
    return [key for key in before if before[key] != after[key]]


@pytest.mark.parametrize("name", JOINT.backbones)
def test_the_published_networks_are_points_of_one_space(name):
    network = arch.get(name)
    candidate = JOINT.decode(f"{name}:{','.join(arch.encode(network.stages))}")
    assert candidate["backbone"] == name
    assert JOINT.to_arch(candidate) == network
    assert JOINT.is_valid(candidate)


def test_one_backbone_is_no_choice():
    keys = [
        f"stage{stage}_{key}"
        for stage in range(1, 5)
        for key in ("operator", "layers", "kernel", "expand")
    ]
    assert list(TINY.choices) == keys
    assert JOINT.choices["backbone"] == JOINT.backbones
    assert len(JOINT.choices) == 1 + 4 * 7  # V1 has seven stages, S six


def test_a_candidate_is_its_text():
    candidate = TINY.decode(TEXT)
    assert TINY.encode(candidate) == TEXT
    assert candidate == {
        **{"stage1_operator": "fused_mbconv", "stage1_layers": 0},
        **{"stage1_kernel": 3, "stage1_expand": 1},
        **{"stage2_operator": "fused_mbconv", "stage2_layers": 2},
        **{"stage2_kernel": 5, "stage2_expand": 4},
        **{"stage3_operator": "mbconv", "stage3_layers": 0},
        **{"stage3_kernel": 3, "stage3_expand": 6},
        **{"stage4_operator": "fused_mbconv", "stage4_layers": -1},
        **{"stage4_kernel": 3, "stage4_expand": 4},
    }
    assert spaces.describe(TINY, candidate) == [
        "Fused-MBConv1 k3x3, 16, x1",
        "Fused-MBConv4 k5x5, 32, x3",
        "MBConv6 k3x3, 48, x2",
        "Fused-MBConv4 k3x3, 64, x1",
    ]


@pytest.mark.parametrize("space", [TINY, JOINT], ids=["tiny", "joint"])
def test_texts_round_trip(space):
    rng = random.Random(1)
    for _ in range(300):
        candidate = space.sample(rng)
        text = space.encode(candidate)
        back = space.decode(text)
        assert list(back) == list(space.choices)
        assert space.encode(back) == text
        assert space.to_arch(back) == space.to_arch(candidate)


def test_what_the_backbone_fixes_stays():
    candidate = TINY.sample(random.Random(2))
    base, found = arch.get("efficientnetv2-tiny"), TINY.to_arch(candidate)
    assert [(r.stride, r.in_channels, r.out_channels) for r in found.stages] == [
        (r.stride, r.in_channels, r.out_channels) for r in base.stages
    ]
    assert (found.stem_channels, found.head_channels, found.name) == (
        *(16, 256),
        "efficientnetv2-tiny",
    )


def test_size_counts_networks_not_candidates():
    # Tiny's layers with offset -1 or 0: 1, 1, 1 or 2, 1 or 2; B0's 1, 2, 2, 3, 5, 8:
    # the first cannot lose one. Two operators everywhere.
    expected = 2 * 2 * 4 * 4 + 2 * 4**5
    space = spaces.Space(
        backbones=("efficientnetv2-tiny", "efficientnetv2-b0"),
        layers=(-1, 0),
        kernels=(3,),
        expands=(4,),
    )
    names, values = list(space.choices), space.choices.values()
    candidates = [dict(zip(names, v, strict=True)) for v in itertools.product(*values)]
    assert len(candidates) == 2 * 4**6
    assert len({space.encode(c) for c in candidates}) == space.size() == expected


@pytest.mark.parametrize(
    "space, text, change",
    [
        (TINY, TEXT, {"stage1_layers": -1}),  # tiny's first stage has one layer
        (TINY, TEXT, {"stage1_layers": -2}),
        (TINY, TEXT, {"stage4_layers": -2}),
        (JOINT, None, {"stage7_kernel": 5}),  # S has six stages
        (JOINT, None, {"stage7_operator": "fused_mbconv", "stage7_layers": 2}),
    ],
)
def test_two_candidates_of_one_network_have_one_text(space, text, change):
    network = arch.get("efficientnetv2-s")
    text = text or f"efficientnetv2-s:{','.join(arch.encode(network.stages))}"
    candidate = space.decode(text)
    alias = candidate | change
    assert alias != candidate and space.encode(alias) == text
    assert space.decode(space.encode(alias)) == candidate


@pytest.mark.parametrize("space", [TINY, JOINT], ids=["tiny", "joint"])
def test_every_choice_is_drawn_evenly(space):
    rng, draws = random.Random(3), 1500
    candidates = [space.sample(rng) for _ in range(draws)]
    for key, values in space.choices.items():
        counts = collections.Counter(candidate[key] for candidate in candidates)
        assert set(counts) == set(values)
        share = 1 / len(values)
        spread = math.sqrt(draws * share * (1 - share))
        for value in values:
            assert abs(counts[value] - draws * share) < 4.5 * spread, (key, value)


def test_draws_follow_from_the_seed():
    first, second = ([TINY.sample(random.Random(s))] for s in (4, 5))
    assert first == [TINY.sample(random.Random(4))] != second


def test_draws_and_changes_keep_to_the_bounds():
    space, free = bounded(0.8, 1.2), bounded(0, 1e9)
    rng = random.Random(6)
    candidate = space.sample(rng)
    for _ in range(100):
        drawn, candidate = space.sample(rng), space.mutate(candidate, rng)
        for found in (drawn, candidate):
            params = arch.count_params(space.to_arch(found), 10)
            assert space.min_params <= params <= space.max_params
            assert space.is_valid(found)
    unbounded = [free.sample(rng) for _ in range(100)]
    assert {space.is_valid(found) for found in unbounded} == {False, True}


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_bounds_are_part_of_what_is_allowed(more):
    rows = arch.get("efficientnetv2-tiny").stages
    candidate = TINY.decode(f"efficientnetv2-tiny:{','.join(arch.encode(rows))}")
    low = dataclasses.replace(TINY, num_classes=10, min_params=COUNT + more)
    high = dataclasses.replace(TINY, num_classes=10, max_params=COUNT + more)
    assert low.is_valid(candidate) == (more <= 0)
    assert high.is_valid(candidate) == (more >= 0)


@pytest.mark.parametrize("space", [TINY, JOINT, bounded(0.7, 1.4)])
def test_a_change_is_another_network_and_mostly_one_choice(space):
    rng = random.Random(7)
    candidate, singles = space.sample(rng), 0
    for _ in range(200):
        before = dict(candidate)
        after = space.mutate(candidate, rng)
        assert candidate == before  # not changed in place
        assert space.encode(after) != space.encode(candidate)
        singles += len(changed(candidate, after)) == 1
        candidate = after
    assert singles >= 190


def test_where_no_one_change_is_valid_more_are_tried():
    free = dataclasses.replace(ONE, layers=(0, 1))
    names, values = list(free.choices), free.choices.values()
    candidates = sorted(
        (dict(zip(names, v, strict=True)) for v in itertools.product(*values)),
        key=free.count_params,
    )
    first, second = next(
        pair for pair in itertools.pairwise(candidates) if len(changed(*pair)) > 1
    )
    low, high = free.count_params(first), free.count_params(second)
    space = dataclasses.replace(free, min_params=low, max_params=high)
    assert space.mutate(first, random.Random(8)) == second


def test_the_only_network_has_no_other():
    only = ONE.sample(random.Random(9))
    assert ONE.size() == 1 and ONE.mutate(only, random.Random(9)) == only


def test_bounds_that_hold_no_network_are_named(monkeypatch):
    monkeypatch.setattr(spaces, "MAX_DRAWS", 1000)
    space = dataclasses.replace(ONE, min_params=5, max_params=1000)
    with pytest.raises(errors.InputError) as error:
        space.sample(random.Random(0))
    assert str(error.value) == (
        "space: none of 1,000 networks drawn from it has 5 to 1,000 parameters; "
        "widen the bounds or the choices"
    )


def test_parameters_are_those_of_the_model():
    rng = random.Random(10)
    for candidate in (TINY.sample(rng), TINY.sample(rng)):
        blocks = arch.encode(TINY.to_arch(candidate).stages)
        model = ev2.create_model("efficientnetv2-tiny", blocks=blocks)
        shapes = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), 32))
        leaves = jax.tree.leaves(shapes["params"])
        counted = sum(math.prod(leaf.shape) for leaf in leaves)
        assert TINY.count_params(candidate) == counted


@pytest.mark.parametrize(
    "values, complaint",
    [
        (dict(backbones=()), "space.backbones: () is not allowed; give values"),
        (dict(backbones=("tiny",)), "space.backbones: 'tiny' is not known; choose"),
        (dict(backbones=("resnet50",)), "space.backbones: resnet50 is a ResNet"),
        (dict(operators=("conv",)), "space.operators: 'conv' is not known; choose"),
        (dict(operators=("bottleneck",)), "space.operators: 'bottleneck' is not"),
        (dict(kernels=(3, 4)), "space.kernels: 4 is not allowed; give odd numbers"),
        (dict(kernels=(-3,)), "space.kernels: -3 is not allowed"),
        (dict(kernels=(3, 3)), "space.kernels: (3, 3) is not allowed; give values"),
        (dict(expands=(0,)), "space.expands: 0 is not allowed; give whole numbers"),
        (dict(expands=(1.5,)), "space.expands: 1.5 is not allowed"),
        (dict(layers=(0, 0.5)), "space.layers: 0.5 is not allowed"),
        (dict(layers=(True,)), "space.layers: True is not allowed"),
        (dict(layers=()), "space.layers: () is not allowed; give values"),
        (
            dict(min_params=1001, max_params=1000),
            "space.min_params: 1,001 is not allowed; give at most max_params",
        ),
    ],
)
def test_what_a_space_refuses(values, complaint):
    with pytest.raises(errors.InputError) as error:
        spaces.Space(**{"backbones": TINY.backbones, **values})
    assert str(error.value).startswith(complaint)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "arch: backbone: '' is not known"),
        (TEXT.replace("tiny", "s"), "arch: backbone: 'efficientnetv2-s' is not known"),
        ("efficientnetv2-tiny", "model.blocks[0] '': '' is not a token"),
        ("efficientnetv2-tiny:r1_x1", "model.blocks[0] 'r1_x1': 'x1' is not a token"),
        (TEXT.replace("_k5", "_k7"), "arch: "),  # no kernel of the space
        (TEXT.replace("_e6", "_e5"), "arch: "),
        (TEXT.replace("r3", "r4"), "arch: "),  # an offset of 3
        (TEXT.replace("_o32", "_o40").replace("_i32", "_i40"), "arch: "),
        (TEXT.replace("_se0.25", "_se0.5"), "arch: "),
        (TEXT.replace("_se0.25", ""), "arch: "),
        (TEXT.replace("r3_k5_s2", "r3_k5_s1"), "arch: "),
        (TEXT.rpartition(",")[0], "arch: "),  # a stage too few
        (TEXT + ",r1_k3_s1_e4_i64_o64_c1", "arch: "),
        (TEXT.replace("r3_k5", "k5_r3"), "arch: "),  # the same network, another text
    ],
)
def test_decode_refuses_what_is_not_of_the_space(text, complaint):
    with pytest.raises(errors.InputError) as error:
        TINY.decode(text)
    if complaint == "arch: ":
        complaint = f"arch: {text!r} is not a network of this space"
    assert str(error.value).startswith(complaint)


def test_valid_networks_are_counted_by_looking():
    space = spaces.Space(backbones=("efficientnetv2-tiny",), layers=(0,), kernels=(3,))
    space = dataclasses.replace(space, expands=(4,), num_classes=10)
    assert space.count_valid() == space.size() == 16
    kinds = itertools.product(spaces.OPERATORS, repeat=4)
    fixed = {"layers": 0, "kernel": 3, "expand": 4}
    params = sorted(
        space.count_params(
            {f"stage{s}_operator": kind for s, kind in enumerate(own, 1)}
            | {f"stage{s}_{key}": v for s in range(1, 5) for key, v in fixed.items()}
        )
        for own in kinds
    )
    bounded = dataclasses.replace(space, min_params=params[3], max_params=params[9])
    assert bounded.count_valid() == sum(params[3] <= p <= params[9] for p in params)
    assert bounded.count_valid(5) == 5

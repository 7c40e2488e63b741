"""Whole networks: exact sizes, dtypes, names, compiles, devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import sharding

import ev2
from ev2 import errors
from ev2.models import arch
from ev2.models.model import create_model

# Trainable parameters, and with BatchNorm statistics, at 1000 classes (tiny: 10).
# V2: totals from the released effnetv2_model_test.py; V1 and ResNet: the published
# trainable counts, plus two statistics per normalized channel; Lite: timm's.
COUNTS = {
    "efficientnetv2-b0": (7_139_704, 7_200_312),
    "efficientnetv2-b1": (8_141_052, 8_212_124),
    "efficientnetv2-b2": (10_096_086, 10_178_374),
    "efficientnetv2-b3": (14_358_406, 14_467_622),
    "efficientnetv2-s": (21_458_488, 21_612_360),
    "efficientnetv2-m": (54_139_356, 54_431_388),
    "efficientnetv2-l": (118_515_272, 119_027_848),
    "efficientnetv2-xl": (208_119_808, 208_896_832),
    "efficientnetv2-tiny": (147_370, 151_658),
    "efficientnet-b0": (5_288_548, 5_330_564),
    "efficientnet-b1": (7_794_184, 7_856_232),
    "efficientnet-b2": (9_109_994, 9_177_562),
    "efficientnet-b3": (12_233_232, 12_320_528),
    "efficientnet-b4": (19_341_616, 19_466_816),
    "efficientnet-b5": (30_389_784, 30_562_520),
    "efficientnet-b6": (43_040_704, 43_265_136),
    "efficientnet-b7": (66_347_960, 66_658_680),
    "efficientnet-lite0": (4_652_008, 4_694_024),
    "efficientnet-lite1": (5_416_680, 5_470_344),
    "efficientnet-lite2": (6_092_072, 6_150_168),
    "efficientnet-lite3": (8_197_096, 8_273_768),
    "efficientnet-lite4": (13_006_568, 13_118_936),
    "resnet50": (25_557_032, 25_610_152),
    "resnet101": (44_549_160, 44_654_504),
    "resnet152": (60_192_808, 60_344_232),
}


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shapes(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), 32))


def small(**options):
    """A network of one block of each kind, which compiles fast."""
    blocks = ("r1_k3_s2_e2_i16_o16_c1", "r1_k3_s1_e2_i16_o16_se0.25")
    return ev2.create_model(
        "efficientnetv2-tiny", num_classes=10, blocks=blocks, **options
    )


@pytest.fixture(scope="module")
def variables():
    return small().init(jax.random.key(0), 16)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def train():
    """The training forward pass, compiled once for the module."""

    def forward(variables, images, dropout, drop_path, rng):
        return small().apply(
            variables,
            images,
            train=True,
            dropout=dropout,
            drop_path=drop_path,
            rng=rng,
        )

    return jax.jit(forward)


def test_every_model_has_counts():
    assert set(COUNTS) == set(ev2.list_models())


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_counts(name):
    classes = 10 if name == "efficientnetv2-tiny" else 1000
    variables = shapes(ev2.create_model(name, num_classes=classes))
    assert set(variables) == {"params", "batch_stats"}
    assert (count(variables["params"]), count(variables)) == COUNTS[name]
    assert arch.count_params(arch.get(name), classes) == COUNTS[name][0]


def test_parameter_names():
    variables = shapes(ev2.create_model("efficientnetv2-s", num_classes=7))
    params, stats = variables["params"], variables["batch_stats"]
    assert len(params) == 40 + 3
    assert jax.tree.map(lambda leaf: leaf.shape, params["stem"]) == {
        "conv": {"kernel": (3, 3, 3, 24)},
        "norm": {"scale": (24,), "bias": (24,)},
    }
    assert jax.tree.map(lambda leaf: leaf.shape, stats["stem"]) == {
        "norm": {"mean": (24,), "var": (24,)}
    }
    assert set(params["stage1_block0"]) == {"fused"}
    assert set(params["stage2_block3"]) == {"fused", "project"}
    assert set(params["stage4_block0"]) == {"expand", "depthwise", "se", "project"}
    block = params["stage4_block0"]
    assert block["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 256)
    # Input 64, ratio 0.25: 16, not a quarter of the expanded 256.
    assert block["se"]["reduce"]["kernel"].shape == (1, 1, 256, 16)
    assert params["classifier"]["kernel"].shape == (1280, 7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["efficientnetv2-b0", "efficientnet-b0", "resnet50"])
def test_dtypes(name, dtype):
    model = ev2.create_model(name, num_classes=5, dtype=dtype)

    def step(images):
        variables = model.init(jax.random.key(0), 64)
        rng = jax.random.key(1)
        trained = model.apply(
            variables, images, train=True, dropout=0.1, drop_path=0.1, rng=rng
        )
        return variables, trained, model.apply(variables, images)

    images = jax.ShapeDtypeStruct((4, 65, 33, 3), jnp.float32)
    variables, (train_logits, stats), logits = jax.eval_shape(step, images)
    assert train_logits.shape == logits.shape == (4, 5)
    leaves = jax.tree.leaves([variables, stats, train_logits, logits])
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(
        jnp.shape, variables["batch_stats"]
    )


def test_bfloat16_is_near_float32(variables, images):
    single, half = (small(dtype=dtype) for dtype in ("float32", "bfloat16"))
    logits = jax.jit(single.apply)(variables, images)
    near = jax.jit(half.apply)(variables, images)
    np.testing.assert_allclose(near, logits, atol=0.03 * np.abs(logits).max())
    assert not np.array_equal(near, logits)


def test_forward_of_a_real_network_at_an_odd_size():
    model = ev2.create_model("efficientnetv2-b0", num_classes=3)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0, 0.02, leaf.shape).astype(np.float32),
        shapes(model),
    )
    image = rng.normal(size=(1, 45, 37, 3)).astype(np.float32)
    logits = jax.jit(model.apply)(variables, np.concatenate([image, image]))
    assert logits.shape == (2, 3) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5)


def test_resnet_blocks_start_as_their_shortcuts():
    # Identity blocks add zero times something: two of them or none, the same value.
    deep, flat = (
        ev2.create_model(
            "resnet50", num_classes=0, blocks=[f"r{layers}_k3_s1_e4_i64_o64_c2"]
        )
        for layers in (3, 1)
    )
    variables = deep.init(jax.random.key(0))
    images = jnp.ones((1, 32, 32, 3))
    np.testing.assert_array_equal(
        jax.jit(deep.apply)(variables, images), jax.jit(flat.apply)(variables, images)
    )


ENDPOINTS = {  # side at 64 px and width of reduction_1 to reduction_5, features
    "efficientnetv2-s": ([24, 48, 64, 160, 256], 1280),
    "efficientnet-b0": ([16, 24, 40, 112, 320], 1280),
    "efficientnet-lite0": ([16, 24, 40, 112, 320], 1280),
    "resnet50": ([64, 256, 512, 1024, 2048], 2048),
}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_endpoints_of_real_networks(name):
    widths, features = ENDPOINTS[name]
    model = ev2.create_model(name)
    logits, ends = jax.eval_shape(
        lambda v, x: model.apply(v, x, endpoints=True),
        shapes(model),
        jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
    )
    assert logits.shape == (2, 1000)
    for level, width in enumerate(widths, start=1):
        side = 64 // 2**level
        assert ends[f"reduction_{level}"].shape == (2, side, side, width)
    assert "reduction_6" not in ends
    assert ends["features"].shape == (2, features)
    assert sum(key.startswith("stage") for key in ends) == model.arch.num_blocks


def test_the_stride_of_version_1_is_in_the_first_1x1():
    # One pixel in two is all that a 1x1 of stride 2 sees; the 3x3 sees them all.
    moved = {}
    for operator in ("c2", "c3"):
        model = ev2.create_model(
            "resnet50", num_classes=0, blocks=[f"r1_k3_s2_e4_i64_o256_{operator}"]
        )
        variables = model.init(jax.random.key(0))
        block = variables["params"]["stage1_block0"]
        block["expand"]["norm"]["scale"] = jnp.ones(256)
        block["shortcut"]["norm"]["scale"] = jnp.zeros(256)  # the branch alone
        jacobian = jax.jit(
            jax.grad(lambda x, v=variables, m=model: m.apply(v, x).sum())
        )
        image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
        moved[operator] = float(np.mean(np.asarray(jacobian(image)) != 0))
    assert moved["c2"] > moved["c3"] > 0


def test_endpoints_are_what_the_logits_come_from(variables, images):
    model = small()
    logits, ends = jax.jit(lambda v, x: model.apply(v, x, endpoints=True))(
        variables, images
    )
    alone = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-6)
    classifier = variables["params"]["classifier"]
    np.testing.assert_allclose(
        ends["features"] @ classifier["kernel"] + classifier["bias"].reshape(1, -1),
        logits,
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(ends["reduction_1"], ends["stem"])
    np.testing.assert_array_equal(ends["reduction_2"], ends["stage2_block0"])


def test_endpoints_come_beside_the_statistics_when_training(variables, images):
    (logits, ends), stats = jax.eval_shape(
        lambda v, x: small().apply(v, x, train=True, endpoints=True), variables, images
    )
    assert logits.shape == (16, 10) and ends["features"].shape[0] == 16
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])


def test_without_classes_the_output_is_features(images):
    model = ev2.create_model("efficientnetv2-tiny", num_classes=0)
    variables = shapes(model)
    assert "classifier" not in variables["params"]
    features = jax.eval_shape(model.apply, variables, images)
    assert features.shape == (16, model.arch.head_channels)
    assert features.dtype == jnp.float32


def test_init_does_not_depend_on_the_image_size(variables):
    other = small().init(jax.random.key(0), 40)
    jax.tree.map(np.testing.assert_array_equal, other, variables)


def test_one_trace_for_all_rates(variables, images, train):
    results = [
        train(variables, images, jnp.float32(a), jnp.float32(b), jax.random.key(0))
        for a, b in [(0, 0), (0.5, 0), (0.5, 0.2)]
    ]
    assert train._cache_size() == 1
    assert not np.allclose(results[0][0], results[1][0])
    assert not np.allclose(results[1][0], results[2][0])


def test_the_key_alone_draws_what_is_dropped(variables, images, train):
    zero, rates = jnp.float32(0), (jnp.float32(0.3), jnp.float32(0.5))
    keys = [jax.random.key(seed) for seed in (1, 1, 2)]
    first, _, other = (train(variables, images, zero, zero, key) for key in keys)
    jax.tree.map(np.testing.assert_array_equal, first, other)
    first, again, other = (train(variables, images, *rates, key)[0] for key in keys)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def gradient(model, variables, images, **rates):
    """Loss, statistics and gradients of a training step with a fixed key."""

    def loss(params):
        logits, stats = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rng=jax.random.key(3),
            **rates,
        )
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), stats

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


def test_remat_changes_no_value(variables, images):
    results = []
    for remat in (False, True):
        model = small(remat=remat)
        step = jax.jit(functools.partial(gradient, model, drop_path=0.5))
        assert ("remat" in str(step.trace(variables, images).jaxpr)) == remat
        results.append(step(variables, images))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# Without groups tests/train/test_step.py compares whole steps.
@pytest.mark.parametrize("group_images", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_eight_devices_agree_with_one(group_images, variables, images):
    model = small(bn_group_images=group_images)
    gradients = functools.partial(gradient, model, dropout=0.3, drop_path=0.5)
    results = []
    for devices in (1, 8):
        mesh = jax.make_mesh(
            (devices,),
            ("data",),
            axis_types=(sharding.AxisType.Auto,),
            devices=jax.devices()[:devices],
        )
        copies = sharding.NamedSharding(mesh, sharding.PartitionSpec())
        split = sharding.NamedSharding(mesh, sharding.PartitionSpec("data"))
        step = jax.jit(gradients, in_shardings=(copies, split), out_shardings=copies)
        results.append(jax.device_get(step(variables, images)))
    (values, gradients), (values_8, gradients_8) = results
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6),
        values,
        values_8,
    )
    # Some gradients are zero but for rounding: hold all to the largest.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * largest),
        gradients,
        gradients_8,
    )


@pytest.mark.parametrize(
    "options, complaint",
    [
        (
            dict(name="efficientnetv2-xs"),
            "model.name: 'efficientnetv2-xs' is not known",
        ),
        (dict(dtype="float16"), "model.dtype: 'float16' is not known"),
        (dict(num_classes=-1), "num_classes: -1 is negative"),
        (dict(bn_momentum=1.0), "model.bn_momentum: 1.0 is not allowed"),
        (dict(bn_group_images=-8), "model.bn_group_images: -8 is negative"),
        (dict(blocks=["r1"]), "model.blocks[0] 'r1': "),
        (dict(name="resnet50", remat=True), "model.remat: resnet50 does not support"),
    ],
)
def test_bad_options_are_refused(options, complaint):
    with pytest.raises(errors.InputError) as error:
        ev2.create_model(**{"name": "efficientnetv2-tiny", **options})
    assert str(error.value).startswith(complaint)


def test_a_rate_needs_a_key(variables, images):
    with pytest.raises(ValueError, match="rng: needed"):
        small().apply(variables, images, train=True, dropout=0.1)


def test_blocks_replace_the_table():
    blocks = arch.encode(arch.get("efficientnetv2-tiny").stages)[:2]
    model = create_model("efficientnetv2-tiny", blocks=blocks)
    assert model.arch.num_blocks == 2
    assert model.eval_image_size == 28
    assert set(shapes(model)["params"]) == {
        *("stem", "stage1_block0", "stage2_block0", "head", "classifier")
    }

"""pytest tests/configs/test_recipes.py; pytest -m slow tests/configs/test_recipes.py

Every recipe takes two steps: the small ones here, all of them in the slow tests, with
the network at its true width and depth on four images of 32 px. On 2 cores shared
with three other processes the ImageNet1k ones took 69 minutes, mostly for compiling,
and about 8 GB (XL). Those of the chain at their own size, with one layer a row: 25
minutes of processor time. Some of all at their own size and depth, where memory allows.
"""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from configs import demo, finetune, folder, imagenet1k, imagenet1k_ft, imagenet21k
from configs import transfer as transfers
from ev2.models import arch
from ev2.train import optimizer as optim
from ev2.train import state as states
from ev2.train import step as steps
from tests.helpers import tiny_run as tiny

BATCH, SIZE = 4, 32
ARGS = [(model, recipe) for recipe, rows in imagenet1k.ROWS.items() for model in rows]


def _parts(config, num_classes, size=SIZE):
    config = config.copy_and_resolve_references()
    config.loss.mix_group_images = BATCH
    config.model.bn_group_images = 0  # the recipe's group does not fit four images
    model = tiny.create_model(config, num_classes)
    optimizer = optim.make_optimizer(config)
    create = lambda: states.create_state(model, optimizer, config, size)  # noqa: E731
    return create, steps.make_train_step(model, optimizer, config)


def _batch(size=SIZE, max_labels=1):
    """With several labels, image i has classes 0 to i."""
    random = np.random.default_rng(0)
    label = np.arange(BATCH, dtype=np.int32)
    if max_labels > 1:
        places = np.arange(max_labels, dtype=np.int32)[None]
        label = np.where(places <= label[:, None], places, -1).astype(np.int32)
    return {
        "image": random.integers(0, 256, (BATCH, size, size, 3), np.uint8),
        "label": label,
        "mask": np.ones(BATCH, np.float32),
    }


def _strengths(config):
    names = ("dropout", "drop_path", "mixup", "cutmix")
    strengths = {name: np.float32(config.progressive[name][1]) for name in names}
    return strengths | {"learning_rate": np.float32(0.001)}


def _take_steps(config, num_classes, size=SIZE):
    """Compiles with little optimization: compiling is the cost here."""
    create, train_step = _parts(config, num_classes, size)
    quick = {"xla_backend_optimization_level": 0}
    state = jax.jit(create, compiler_options=quick)()
    before = np.asarray(state.params["classifier"]["kernel"])  # learns in every recipe
    step = jax.jit(train_step, donate_argnums=0, compiler_options=quick)
    for _ in range(2):
        batch = _batch(size, config.data.max_labels)
        state, sums = step(state, batch, _strengths(config))
        assert int(sums["count"]) == BATCH and np.isfinite(float(sums["loss"]))
    assert int(state.step) == 2
    assert not np.array_equal(before, state.params["classifier"]["kernel"])


def test_demo_takes_steps():
    _take_steps(demo.get_config(), 10)


@pytest.mark.parametrize(("model", "recipe"), [("b0", "paper"), ("b0", "released")])
def test_imagenet_recipes_trace(model, recipe):
    # Shapes and dtypes of a whole step, without compiling it.
    config = imagenet1k.get_config(f"{model},recipe={recipe}")
    create, train_step = _parts(config, 1000)
    state = jax.eval_shape(create)
    after, sums = jax.eval_shape(train_step, state, _batch(), _strengths(config))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert sums["loss"].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize(("model", "recipe"), ARGS)
def test_every_imagenet_recipe_takes_steps(model, recipe):
    _take_steps(imagenet1k.get_config(f"{model},recipe={recipe}"), 1000)


@pytest.mark.slow
def test_folder_recipe_takes_steps():
    _take_steps(folder.get_config(), 3)


def _trained(config):
    """The recipe with what it would take from a checkpoint."""
    config.init.checkpoint = "somewhere"
    config.data.mean = config.data.std = (128.0,) * 3
    return config


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_recipes_of_the_chain_trace(recipe):
    # Shapes of a whole step at the true size and number of classes, of a tiny network.
    for config in (
        imagenet21k.get_config(f"s,recipe={recipe}"),
        _trained(imagenet1k_ft.get_config(f"s,recipe={recipe}")),
        _trained(transfers.get_config(f"flowers,s,recipe={recipe}")),
    ):
        config.model.update({"name": "efficientnetv2-tiny", "blocks": tiny.BLOCKS})
        create, train_step = _parts(config, config.data.num_classes)
        state = jax.eval_shape(create)
        batch = _batch(config.progressive.image_size[1], config.data.max_labels)
        after, _ = jax.eval_shape(train_step, state, batch, _strengths(config))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        head = state.params["classifier"]["kernel"]
        assert head.shape[1] == config.data.num_classes


CHAIN = [
    (module, arg, recipe)
    for module in (imagenet21k, imagenet1k_ft)
    for arg in module.MODELS
    for recipe in module.RECIPES
] + [
    (transfers, f"{name},{model}", recipe)
    for name in transfers.SETS
    for model in transfers.MODELS
    for recipe in transfers.RECIPES
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "arg", "recipe"), CHAIN)
def test_every_recipe_of_the_chain_takes_steps(module, arg, recipe):
    """At the recipe's own size, classes and widths, with one layer a row.

    The layers of a row are alike, and it is their number that makes compiling long:
    the networks at full depth are those of ImageNet1k, above.
    """
    config = _trained(module.get_config(f"{arg},recipe={recipe}"))
    rows = arch.get(config.model.name).rows
    config.model.blocks = arch.encode(dataclasses.replace(r, layers=1) for r in rows)
    size = config.progressive.image_size[1]
    _take_steps(config, config.data.num_classes, size)


@pytest.mark.slow
def test_finetune_recipe_takes_steps():
    _take_steps(_trained(finetune.get_config()), 3)


TRUE_SIZES = [
    (imagenet1k, "s", 6),
    (imagenet1k, "m", 14),
    (imagenet21k, "s", 6),
    (imagenet1k_ft, "s", 8),
    (transfers, "cifar10,s", 8),
]


def _available_gib():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("module", "arg", "gib"), TRUE_SIZES)
def test_recipes_take_steps_at_their_true_size(module, arg, gib):
    """Network, classes and image size are the recipe's; the images are four."""
    if _available_gib() < gib:
        pytest.skip(f"about {gib} GiB of memory are needed, less is free")
    config = _trained(module.get_config(arg))
    size = config.progressive.image_size[1]
    _take_steps(config, config.data.num_classes, size)

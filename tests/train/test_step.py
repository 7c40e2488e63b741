"""pytest tests/train/test_step.py

The step is a function of the global batch: devices, sharding and pmap change nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ev2 import config as defaults
from ev2 import sharding
from ev2.models import normalize
from ev2.train import optimizer as optim
from ev2.train import state as states
from ev2.train import step as steps
from tests.helpers import tiny_run as tiny

BATCH, SIZE, CLASSES = 32, 16, 10
ALL_ON = {"dropout": 0.3, "drop_path": 0.2, "mixup": 0.4, "cutmix": 0.7}
ALL_OFF = dict.fromkeys(ALL_ON, 0.0)


def _config(**changes):
    config = defaults.default_config()
    config.model.update({"name": "efficientnetv2-tiny", "dtype": "float32"})
    config.progressive.update({"mixup": (0.0, 0.4), "cutmix": (0.0, 0.7)})
    config.loss.mix_group_images = 4
    config.model.blocks = tiny.BLOCKS
    config.update_from_flattened_dict(changes)
    return config


def _parts(config: ConfigDict):
    model = tiny.create_model(config, CLASSES)
    optimizer = optim.make_optimizer(config)
    return model, optimizer, steps.make_train_step(model, optimizer, config)


def _batches(count, mask_one=True):
    random = np.random.default_rng(1)
    for _ in range(count):
        mask = np.ones(BATCH, np.float32)
        mask[3] = 0.0 if mask_one else 1.0
        yield {
            "image": random.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
            "label": random.integers(0, CLASSES, BATCH).astype(np.int32),
            "mask": mask,
        }


def _strengths(values, lr=0.02):
    named = {**values, "learning_rate": lr}
    return {key: np.float32(value) for key, value in named.items()}


def _run(config, num_devices, num_steps, values):
    """States after each step on a mesh of `num_devices`."""
    mesh = sharding.make_mesh(jax.devices()[:num_devices])
    model, optimizer, train_step = _parts(config)
    everywhere = sharding.replicated(mesh)
    create = jax.jit(
        lambda: states.create_state(model, optimizer, config, SIZE),
        out_shardings=everywhere,
    )
    jitted = jax.jit(
        train_step,
        in_shardings=(everywhere, sharding.split_by_image(mesh), everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    state, after = create(), []
    for batch in _batches(num_steps):
        batch = sharding.to_global(mesh, batch)
        state, sums = jitted(state, batch, _strengths(values))
        after.append(jax.device_get((state, sums)))
    return after


def _assert_close(a, b, tolerance):
    """Each leaf within `tolerance` of the other, relative to the leaf's norm.

    An offset before a BatchNorm has no gradient but rounding; a leaf whose norm is
    below 1e-4, a tenth of what one step moves the others by, is held to that instead.
    """
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        error = np.linalg.norm(np.float64(x) - y) / max(np.linalg.norm(x), 1e-4)
        assert error <= tolerance, (jax.tree_util.keystr(path), error)


@pytest.mark.parametrize("group", [0, pytest.param(8, marks=pytest.mark.slow)])
def test_one_and_eight_devices_agree(group):
    config = _config(**{"model.bn_group_images": group})
    one = _run(config, 1, 10, ALL_ON)
    eight = _run(config, 8, 10, ALL_ON)
    _assert_close(one[0], eight[0], 1e-5)
    _assert_close(one[9], eight[9], 1e-3)
    assert int(one[9][0].step) == 10


def test_pmap_with_statistics_per_device_is_the_jitted_step_with_groups():
    # BatchNorm over groups of 4 images on 8 devices is what each device of a pmap
    # computes by itself on its 4 images; gradients are averaged by hand there.
    config = _config(**{"model.bn_group_images": BATCH // 8})
    config.progressive.update({"mixup": (0.0, 0.0), "cutmix": (0.0, 0.0)})
    batch = next(_batches(1, mask_one=False))
    (state, sums), *_ = _run_jit_once(config, batch)

    own = _config(**{"model.bn_group_images": 0})
    model, optimizer, _ = _parts(own)
    start = states.create_state(model, optimizer, own, SIZE)

    def device_step(images, labels):
        images = normalize.normalize(images, own.data.mean, own.data.std)
        targets = smoothed_rows(labels, own.loss.label_smoothing)

        def loss_fn(params):
            logits, batch_stats = model.apply(
                {"params": params, "batch_stats": start.batch_stats}, images, train=True
            )
            cross = -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=1))
            kernels = [
                leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(params)
                if path[-1].key == "kernel"
            ]
            decay = sum(jnp.sum(k * k) for k in kernels) / 2
            return cross + own.optimizer.weight_decay * decay, batch_stats

        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(start.params)
        grads, batch_stats = jax.lax.pmean((grads, batch_stats), "devices")
        updates, _ = optimizer.update(
            grads, start.opt_state, start.params, learning_rate=jnp.float32(0.02)
        )
        return jax.tree.map(jnp.add, start.params, updates), batch_stats

    split = {k: v.reshape(8, BATCH // 8, *v.shape[1:]) for k, v in batch.items()}
    params, batch_stats = jax.tree.map(
        lambda x: x[0],
        jax.pmap(device_step, axis_name="devices")(split["image"], split["label"]),
    )
    _assert_close(state.params, params, 1e-5)
    _assert_close(state.batch_stats, batch_stats, 1e-5)
    assert int(sums["count"]) == BATCH


def smoothed_rows(labels, smoothing):
    """Smoothed one-hot rows, written out."""
    one_hot = (labels[:, None] == jnp.arange(CLASSES)[None, :]).astype(jnp.float32)
    return one_hot * (1 - smoothing) + smoothing / CLASSES


def _run_jit_once(config, batch):
    mesh = sharding.make_mesh()
    model, optimizer, train_step = _parts(config)
    state = states.create_state(model, optimizer, config, SIZE)
    state = jax.device_put(state, sharding.replicated(mesh))
    state, sums = jax.jit(train_step)(
        state, sharding.to_global(mesh, batch), _strengths(ALL_OFF)
    )
    return jax.device_get((state, sums)), None


def test_strengths_and_rates_never_compile_again():
    config = _config()
    model, optimizer, train_step = _parts(config)
    state = states.create_state(model, optimizer, config, SIZE)
    jitted = jax.jit(train_step)
    for values in (ALL_ON, ALL_OFF, {**ALL_OFF, "mixup": 0.1}):
        for lr in (0.0, 0.1):
            state, _ = jitted(state, next(_batches(1)), _strengths(values, lr))
    assert jitted._cache_size() == 1


def test_draws_follow_the_step_and_the_seed():
    config = _config()
    model, optimizer, train_step = _parts(config)
    state = states.create_state(model, optimizer, config, SIZE)
    jitted, batch = jax.jit(train_step), next(_batches(1))

    def loss(state):
        return float(jitted(state, batch, _strengths(ALL_ON, lr=0.0))[1]["loss"])

    later = dataclasses.replace(state, step=state.step + 1)
    assert loss(state) == loss(state)
    assert loss(state) != loss(later)


def test_an_undecoded_image_does_not_count():
    config = _config()
    config.progressive.update({"mixup": (0.0, 0.0), "cutmix": (0.0, 0.0)})
    model, optimizer, train_step = _parts(config)
    state = states.create_state(model, optimizer, config, SIZE)
    batch = next(_batches(1))
    other = {**batch, "label": batch["label"].copy()}
    other["label"][3] = (batch["label"][3] + 1) % CLASSES  # row 3 has mask 0
    jitted = jax.jit(train_step)
    a, sums = jitted(state, batch, _strengths(ALL_OFF))
    b, _ = jitted(state, other, _strengths(ALL_OFF))
    assert int(sums["count"]) == BATCH - 1
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)

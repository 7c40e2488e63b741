"""pytest tests/train/test_optimizer.py

RMSProp, learning rate and EMA against TensorFlow 1's own, over 50 steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from ev2 import config as defaults
from ev2 import progressive
from ev2.train import optimizer as optim

STEPS = 50
IMAGES = 1000  # per epoch; 40 images a step make 25 steps an epoch


def _config(**changes):
    config = defaults.default_config()
    config.update(
        ConfigDict(
            {
                "epochs": 2.0,
                "batch_size": 40,
                "optimizer": {"warmup_epochs": 0.4, "decay_epochs": 0.24, "lr": 0.5},
                "progressive": {"schedule": "fixed"},
            }
        )
    )
    config.update_from_flattened_dict(changes)
    return config


def _rates(config):
    stages = progressive.make_stages(config, IMAGES)
    rate = optim.make_learning_rate(config, stages, IMAGES)
    return [rate(step) for step in range(stages[-1].last_step)]


def _tf1_run(peak: float, gradients: np.ndarray, start: np.ndarray):
    """Rates, variables and averages of TF1's own classes, step by step."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        global_step = v1.train.get_or_create_global_step()
        decayed = v1.train.exponential_decay(
            peak, global_step, decay_steps=6, decay_rate=0.97, staircase=True
        )
        warm = peak * tf.cast(global_step, tf.float32) / 10.0
        rate = tf.where(global_step < 10, warm, decayed)
        variable = v1.get_variable("v", initializer=start)
        gradient = v1.placeholder(tf.float32, start.shape)
        optimizer = v1.train.RMSPropOptimizer(rate, 0.9, 0.9, 1e-3)
        train = optimizer.apply_gradients([(gradient, variable)], global_step)
        with tf.control_dependencies([train]):
            updates = tf.identity(global_step)  # read after the step was counted
        average = v1.train.ExponentialMovingAverage(0.9999, num_updates=updates)
        with tf.control_dependencies([train, updates]):
            step = average.apply([variable])
        session.run(v1.global_variables_initializer())
        rates, variables, averages = [], [], []
        for value in gradients:
            rates.append(session.run(rate))
            session.run(step, {gradient: value})
            variables.append(session.run(variable))
            averages.append(session.run(average.average(variable)))
    return np.array(rates), np.array(variables), np.array(averages)


def test_rates_parameters_and_averages_equal_tf1_over_50_steps():
    random = np.random.default_rng(0)
    # Sizes from 1e-3 to 1e3: where epsilon matters and where it does not.
    sizes = 10.0 ** random.uniform(-3, 3, (1, 16))
    gradients = (random.normal(size=(STEPS, 16)) * sizes).astype(np.float32)
    start = random.normal(size=16).astype(np.float32)
    config = _config()
    rates = _rates(config)
    assert len(rates) == STEPS
    tf_rates, tf_variables, tf_averages = _tf1_run(0.5 * 40 / 256, gradients, start)
    np.testing.assert_allclose(rates, tf_rates, rtol=2e-6)

    optimizer = optim.make_optimizer(config)
    params = {"w": jnp.asarray(start)}
    ema, state = params, optimizer.init(params)
    for i, gradient in enumerate(gradients):
        updates, state = optimizer.update(
            {"w": jnp.asarray(gradient)},
            state,
            params,
            learning_rate=jnp.float32(rates[i]),
        )
        params = jax.tree.map(jnp.add, params, updates)
        ema = optim.update_ema(config, ema, params, jnp.int32(i + 1))
        np.testing.assert_allclose(params["w"], tf_variables[i], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(ema["w"], tf_averages[i], rtol=2e-5, atol=2e-6)


def test_paper_rates():
    # Peak 0.256 at 4,096 images; the released code's stairs have dropped twice by
    # the end of a warm-up of 5 epochs, and 145 times after 350 epochs.
    config = defaults.default_config()
    config.progressive.schedule = "fixed"
    stages = progressive.make_stages(config, 1_281_167)
    rate = optim.make_learning_rate(config, stages, 1_281_167)
    per_epoch = 1_281_167 / 4096
    assert rate(0) == 0
    assert rate(int(2.5 * per_epoch)) == pytest.approx(0.128, rel=2e-3)
    assert rate(int(5 * per_epoch) + 1) == pytest.approx(0.2409, rel=1e-3)
    assert rate(stages[-1].last_step - 1) == pytest.approx(0.00309, rel=1e-2)


def test_cosine_and_constant():
    cosine = _rates(_config(**{"optimizer.schedule": "cosine"}))
    peak = 0.5 * 40 / 256
    assert cosine[10] == pytest.approx(peak)
    assert cosine[30] == pytest.approx(peak / 2)  # half of the 40 steps that are left
    assert 0 < cosine[-1] < 0.01 * peak
    constant = _rates(_config(**{"optimizer.schedule": "constant"}))
    assert constant[10:] == [peak] * 40


def test_rate_follows_the_batch_size_of_the_stage():
    config = _config(
        **{
            "progressive.schedule": "progressive",
            "progressive.stages": 2,
            "progressive.batch_size": (40, 20),
            "optimizer.schedule": "constant",
        }
    )
    stages = progressive.make_stages(config, IMAGES)
    rate = optim.make_learning_rate(config, stages, IMAGES)
    first, second = stages
    assert rate(second.first_step) == pytest.approx(rate(first.last_step - 1) / 2)


def test_clipping_bounds_the_global_norm():
    config = _config(**{"optimizer.clip_norm": 1.0, "optimizer.momentum": 0.0})
    optimizer = optim.make_optimizer(config)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}  # norm 50
    updates, _ = optimizer.update(
        grads, optimizer.init(params), params, learning_rate=jnp.float32(1.0)
    )
    for name, g in (("a", 0.6), ("b", 0.8)):
        expected = -g / np.sqrt(0.9 + 0.1 * g * g + 1e-3)
        np.testing.assert_allclose(updates[name], [expected], rtol=1e-5)


def test_ema_off_is_the_weights():
    config = _config(**{"ema.decay": 0.0})
    ema = optim.update_ema(
        config, {"w": jnp.ones(2)}, {"w": jnp.full(2, 3.0)}, jnp.int32(7)
    )
    np.testing.assert_array_equal(ema["w"], [3.0, 3.0])

"""Times calls and training steps, after a warm-up."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ev2 import sharding
from ev2.train import compile as programs
from ev2.train import optimizer as optim
from ev2.train import state as states

WARM_UP_CALLS = 3
# Calls that count: until this many, or this long and enough for a percentile.
MAX_CALLS, MAX_SECONDS, MIN_CALLS = 100, 20.0, 10


def time_calls(
    call: Callable[[], Any], max_seconds: float = MAX_SECONDS
) -> list[float]:
    """Returns the seconds of each call, after a few that do not count.

    There are `MAX_CALLS`, or as many as `max_seconds` have room for, at least
    `MIN_CALLS`.
    """
    for _ in range(WARM_UP_CALLS):
        call()
    seconds: list[float] = []
    while len(seconds) < MIN_CALLS or (
        len(seconds) < MAX_CALLS and sum(seconds) < max_seconds
    ):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def time_train_step(
    config: ConfigDict,
    num_classes: int,
    *,
    image_size: int,
    batch_size: int,
    max_seconds: float = MAX_SECONDS,
    alone: contextlib.AbstractContextManager | None = None,
) -> list[float]:
    """Returns the seconds of training steps on one device, with the images on it.

    It is the step that `ev2 train` runs, on random images.

    Args:
        config: the recipe, or the part of it that `tpu.step_config` keeps.
        num_classes: of the network.
        image_size: px.
        batch_size: images.
        max_seconds: see `time_calls`.
        alone: entered while steps are timed, after compiling.
    """
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = programs.make_model(config, num_classes)
    optimizer = optim.make_optimizer(config)
    sizes = {"image_size": image_size, "batch_size": batch_size}
    lowered = programs.lower_train_step(model, optimizer, config, mesh, **sizes)
    train = lowered.compile()
    state = jax.jit(
        lambda: states.create_state(model, optimizer, config, image_size),
        out_shardings=sharding.replicated(mesh),
    )()
    batch = sharding.to_global(mesh, make_batch(num_classes, **sizes))
    values = {"learning_rate": 1e-3, "dropout": 0.2, "drop_path": 0.2}
    hyperparameters = {
        name: np.float32(values.get(name, 0.0)) for name in programs.HYPERPARAMETERS
    }

    def step():
        nonlocal state
        state, sums = train(state, batch, hyperparameters)
        jax.block_until_ready(sums)

    with alone or contextlib.nullcontext():
        return time_calls(step, max_seconds)


def make_batch(
    num_classes: int, *, image_size: int, batch_size: int
) -> dict[str, np.ndarray]:
    """Returns random images and labels in the layout of a batch."""
    rng, shape = np.random.default_rng(0), (batch_size, image_size, image_size, 3)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, num_classes, batch_size, np.int32),
        "mask": np.ones(batch_size, np.float32),
    }

"""Trains the policy of the reinforce controller, a softmax per choice, by PPO.

`learn` replays the trials that have ended, batch by batch, from the uniform policy.
Workers that see the same trials have the same policy, so it is not stored. A process
caches the policy of the batches that it has learned.

Source: Tan et al. 2019, MnasNet, section 4.3, and Schulman et al. 2017, Proximal Policy
Optimization Algorithms, equation 7. Differs: choices are independent, where the policy
of MnasNet is recurrent, since a search has hundreds of networks, not thousands; the
ratio is clipped per choice; a batch counts as drawn from the policy that it updates,
although its trials started earlier.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ev2.nas import reward

# Tuned on the tables of `ev2.bench.controllers`, seeds 100 to 115, for 40 to 600
# networks, with and without noise and failures.
_BATCH_TRIALS, _BATCH_STEPS = 5, 2
_LR = 0.1
_CLIP = 0.2  # of the ratio of a choice's new probability to the old, around 1
_ENTROPY = 0.01
_DECAY = 0.6  # of the moving averages, per batch
_LIMIT = 3.0  # of an advantage, in standard deviations: a failure has reward 0
_NEVER = -1e9  # logit of a missing value of a choice; finite, for gradients

_optimizer = optax.adam(_LR)


class _State(NamedTuple):
    logits: jax.Array  # [choices, values] float32
    optimizer: optax.OptState
    baseline: jax.Array  # moving averages of the rewards' mean and standard deviation
    deviation: jax.Array


# By number of values: the batches learned last, and the policy after them.
learned: dict[tuple[int, ...], tuple[list[list[reward.RewardedTrial]], _State]] = {}


def learn(
    sizes: tuple[int, ...], history: Sequence[reward.RewardedTrial]
) -> list[list[float]]:
    """Returns the probabilities of the values of each choice.

    Args:
        sizes: number of values of each choice.
        history: trials that have ended, oldest first. An incomplete last batch is
            left out.
    """
    count = len(history) // _BATCH_TRIALS
    if not count:
        return [[1 / size] * size for size in sizes]
    starts = range(0, count * _BATCH_TRIALS, _BATCH_TRIALS)
    batches = [list(history[start : start + _BATCH_TRIALS]) for start in starts]
    seen, state = learned.get(sizes, ([], None))
    if state is None or batches[: len(seen)] != seen:
        seen, state = [], _create_state(sizes, batches[0])
    for batch in batches[len(seen) :]:
        indices = np.array([ended.indices for ended in batch], np.int32)
        state = _update(state, indices, _rewards(batch))
    learned[sizes] = batches, state
    probabilities = np.asarray(jax.nn.softmax(state.logits), np.float64)
    return [row[:size].tolist() for row, size in zip(probabilities, sizes, strict=True)]


def _create_state(
    sizes: tuple[int, ...], batch: Sequence[reward.RewardedTrial]
) -> _State:
    values = np.arange(max(sizes))[None]  # [1, values]
    has = values < np.array(sizes)[:, None]
    logits = jnp.asarray(np.where(has, 0, _NEVER), jnp.float32)
    rewards = jnp.asarray(_rewards(batch))
    return _State(logits, _optimizer.init(logits), rewards.mean(), rewards.std())


def _rewards(batch: Sequence[reward.RewardedTrial]) -> np.ndarray:
    return np.array([ended.reward for ended in batch], np.float32)


@jax.jit
def _update(state: _State, indices: jax.Array, rewards: jax.Array) -> _State:
    """Learns one batch: indices `[trials, choices]`, rewards `[trials]`."""
    deviation = jnp.maximum(state.deviation, 1e-6)
    advantages = jnp.clip((rewards - state.baseline) / deviation, -_LIMIT, _LIMIT)
    before = _log_probabilities(state.logits, indices)
    loss = functools.partial(
        _loss, indices=indices, before=before, advantages=advantages[:, None]
    )
    logits, optimizer = state.logits, state.optimizer
    for _ in range(_BATCH_STEPS):
        gradient = jax.grad(loss)(logits)
        with jax.numpy_dtype_promotion("standard"):  # Adam raises a float to an integer
            updates, optimizer = _optimizer.update(gradient, optimizer)
        logits = optax.apply_updates(logits, updates)
    return _State(
        logits=jnp.asarray(logits),
        optimizer=optimizer,
        baseline=_DECAY * state.baseline + (1 - _DECAY) * rewards.mean(),
        deviation=_DECAY * state.deviation + (1 - _DECAY) * rewards.std(),
    )


def _loss(logits, *, indices, before, advantages) -> jax.Array:
    """Returns the PPO loss minus the entropy, both summed over choices."""
    ratio = jnp.exp(_log_probabilities(logits, indices) - before)
    clipped = jnp.clip(ratio, 1 - _CLIP, 1 + _CLIP)
    gains = jnp.minimum(ratio * advantages, clipped * advantages)
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits))
    return -gains.sum(axis=1).mean() - _ENTROPY * entropy


def _log_probabilities(logits: jax.Array, indices: jax.Array) -> jax.Array:
    """Returns log probabilities of the chosen values, `[trials, choices]`."""
    choices = jnp.arange(logits.shape[0])[None]
    return jax.nn.log_softmax(logits)[choices, indices]

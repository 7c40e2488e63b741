"""Learning rate by step and by layer, RMSProp as TensorFlow 1 defines it, and EMA.

The learning rate is a pure Python function of the step, evaluated on the host and
handed to the compiled step as a number: `ev2 plan` prints it without a device, and
a change of schedule never recompiles anything.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ev2 import progressive

_IMAGES_PER_LR = 256  # the learning rate is stated for this many images a step


def make_learning_rate(
    config: ConfigDict, stages: Sequence[progressive.Stage], num_train_images: int
) -> Callable[[int], float]:
    """Returns the learning rate as a function of the step (first step is 0).

    The peak is `optimizer.lr` for 256 images and follows the batch size of the
    step's stage linearly. Warm-up climbs from 0 over `warmup_epochs`, then:

      * exponential: peak * decay_rate ** floor(epoch / decay_epochs). The stairs
        are counted from step 0, so the rate drops right after the warm-up.
      * cosine: from the peak at the end of the warm-up to 0 at the last step.
      * constant: the peak.

    Source: paper section 5.1 (0.256 at 4,096 images, x0.97 every 2.4 epochs); the
    5 epochs of warm-up and the stairs from step 0 are the released code's.
    """
    opt = config.optimizer
    total_images = stages[-1].images_seen(stages[-1].last_step)
    warmup_images = opt.warmup_epochs * num_train_images
    decay_images = opt.decay_epochs * num_train_images

    def learning_rate(step: int) -> float:
        stage = next((s for s in stages if step < s.last_step), stages[-1])
        seen = stage.images_seen(step)
        peak = opt.lr * stage.batch_size / _IMAGES_PER_LR
        if seen < warmup_images:
            return peak * seen / warmup_images
        if opt.schedule == "exponential":
            # 1e-9 keeps a boundary that falls on a whole step on that step.
            return peak * opt.decay_rate ** math.floor(seen / decay_images + 1e-9)
        if opt.schedule == "cosine":
            done = (seen - warmup_images) / max(total_images - warmup_images, 1)
            return peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return peak

    return learning_rate


def make_optimizer(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Returns RMSProp; `update` takes the step's `learning_rate` as a keyword.

    v <- decay v + (1 - decay) g^2, v starting at 1;
    m <- momentum m + lr g / sqrt(v + epsilon); params <- params - m.

    The learning rate is inside the momentum sum, epsilon inside the root.
    Gradients are first clipped to a global norm of `optimizer.clip_norm` (0: off). The
    learning rate of a leaf is multiplied by its factor, see `layer_factors`.

    Source: TensorFlow 1's RMSPropOptimizer, which the released code trains with;
    tests/train/test_optimizer.py compares with it.
    Differs: PyTorch starts v at 0 and adds epsilon outside the root.
    """
    opt = config.optimizer
    clip = optax.clip_by_global_norm(opt.clip_norm) if opt.clip_norm else None
    parts = [
        clip or optax.identity(),
        optax.scale_by_rms(decay=opt.decay, eps=opt.epsilon, initial_scale=1.0),
        _scale_by_argument(config.init),
        optax.trace(decay=opt.momentum),
    ]
    return optax.chain(*parts)


def _scale_by_argument(init: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the `learning_rate` given to `update`, by layer."""

    def update(updates, state, params=None, *, learning_rate, **unused):
        del params, unused
        factors = layer_factors(init, updates)
        return jax.tree.map(
            lambda u, f: -learning_rate * f * u, updates, factors
        ), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def layer_factors(init: ConfigDict, params: Any) -> Any:
    """Returns what the learning rate of each leaf is multiplied by, a tree of floats.

    The classifier and the head have 1, the last stage `init.layer_decay`, the stage
    before it the square of that, and so on down to the stem. With `init.freeze`
    "backbone" all but the classifier have 0.

    Args:
      init: `config.init`.
      params: tree of parameters, or of the same form; its values are not read.
    """
    if init.layer_decay == 1 and not init.freeze:
        return jax.tree.map(lambda _: 1.0, params)
    last = max(_stage(name) for name in params)

    def factor(name: str) -> float:
        if name == "classifier":
            return 1.0
        if init.freeze == "backbone":
            return 0.0
        return 1.0 if name == "head" else init.layer_decay ** (last + 1 - _stage(name))

    return {
        name: jax.tree.map(lambda _, name=name: factor(name), below)
        for name, below in params.items()
    }


def _stage(name: str) -> int:
    """3 of "stage3_block0"; 0 of what lies before the stages or after them."""
    return int(name.removeprefix("stage").split("_")[0]) if "_block" in name else 0


def hold_frozen(init: ConfigDict, params: Any) -> Any:
    """Returns the same values; leaves whose factor is 0 get no gradient.

    Nothing is then computed for it: a frozen backbone has no backward pass.
    """
    return jax.tree.map(
        lambda p, f: p if f else jax.lax.stop_gradient(p),
        params,
        layer_factors(init, params),
    )


def update_ema(config: ConfigDict, ema: Any, new: Any, num_updates: jax.Array) -> Any:
    """Returns the running average after one more step.

    Args:
      config: `ema.decay` in [0, 1) and `ema.warmup`.
      ema: tree of float32 averages (parameters and BatchNorm statistics).
      new: tree of the same shapes, after the step.
      num_updates: int32 scalar, steps taken including this one.

    With warm-up the decay is min(decay, (1 + n) / (10 + n)). Source: TensorFlow 1's
    ExponentialMovingAverage with num_updates, as in the released code.
    """
    decay = jnp.float32(config.ema.decay)
    if config.ema.warmup:
        n = num_updates.astype(jnp.float32)
        decay = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return jax.tree.map(lambda e, v: e - (1.0 - decay) * (e - v), ema, new)

"""The state that training carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ev2.models.model import Model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a checkpoint must hold for training to go on exactly.

    The position in the data and every random draw follow from `step` and the
    config's seed, so they need no fields of their own.
    """

    step: jax.Array  # int32 scalar: steps taken
    params: Any  # float32
    batch_stats: Any  # float32 running means and variances
    opt_state: Any  # float32
    ema: Any  # {"params", "batch_stats"}: running averages, float32

    @property
    def weights(self) -> dict[str, Any]:
        """The two sets of weights that every evaluation compares, by name."""
        raw = {"params": self.params, "batch_stats": self.batch_stats}
        return {"ema": self.ema, "raw": raw}


def create_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    image_size: int,
) -> TrainState:
    """Returns the state before the first step; to be called under `jax.jit`."""
    variables = model.init(jax.random.key(config.seed), image_size=image_size)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        # A copy: the state is donated, and no buffer may be donated twice.
        ema=jax.tree.map(jnp.copy, variables),
    )

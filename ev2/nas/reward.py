"""Computes the reward of a network from accuracy, step time, parameters: A S^w P^v.

Source: paper, section 3.2. The paper does not say how S and P are normalized; here
both are relative to a named reference network, whose reward is its accuracy.

Standard library only.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from ev2 import errors


class RewardedTrial(NamedTuple):
    """A trial that has ended: indices in the order of `Space.choices`, and reward."""

    indices: tuple[int, ...]
    reward: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward of a search.

    Attributes:
        step_seconds: step time of the reference on the same device.
        params: parameters of the reference.
        step_exponent: w; -0.07 in the paper.
        params_exponent: v; -0.05 in the paper.
    """

    step_seconds: float
    params: int
    step_exponent: float = -0.07
    params_exponent: float = -0.05

    def __call__(self, accuracy: float, step_seconds: float, params: int) -> float:
        """Returns the reward, 0 for accuracy 0.

        Args:
            accuracy: fraction, 0 to 1.
            step_seconds: of a training step.
            params: number of trainable parameters.
        """
        step = (step_seconds / self.step_seconds) ** self.step_exponent
        return accuracy * step * (params / self.params) ** self.params_exponent


def check_exponent(key: str, value: Any) -> None:
    """Raises InputError unless `value` is a number from -10 to 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not -10 <= value <= 0:
        raise errors.InputError(
            f"{key}: {value!r} is not allowed; give a number from -10 to 0, as the "
            "paper's -0.07 for step time and -0.05 for parameters"
        )

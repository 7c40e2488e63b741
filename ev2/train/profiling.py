"""`ev2 train --profile=FIRST:LAST`: a profile of chosen steps, by JAX's profiler."""

import pathlib
import re
from typing import Any

import jax

from ev2 import errors

FOLDER = "profile"  # in the run's folder; read by xprof, TensorBoard and Perfetto


def parse_steps(text: str | None) -> range:
    """Returns the steps of "FIRST:LAST", LAST exclusive; of None, no steps.

    Raises:
        InputError: the text is of another form, or has no steps.
    """
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(int(match[1]), int(match[2])) if match else range(0)
    if not steps:
        raise errors.InputError(
            f"profile: {text!r}; give FIRST:LAST, such as 100:110 for ten steps"
        )
    return steps


def check_steps(steps: range, last_step: int) -> None:
    """Raises InputError if there are steps that a run to `last_step` does not have."""
    if steps and steps.stop > last_step:
        raise errors.InputError(
            f"profile: steps {steps.start} to {steps.stop}; the run has {last_step}"
        )


class Profiler:
    """Profiles the steps it is told of, as far as they are among those chosen."""

    def __init__(self, workdir: str, steps: range):
        self._folder = str(pathlib.Path(workdir) / FOLDER)
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        """To be called before each step."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """To be called after each step with what it returned."""
        if self._running and step + 1 not in self._steps:
            jax.block_until_ready(results)  # or the trace would end before the step
            self.close()

    def close(self) -> None:
        """Ends the profile, if one is being taken, and writes it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

"""Notice that the machine will be taken away: save at the next step, then leave."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils

from ev2 import errors


class Listener:
    """Listens for SIGTERM, sent to this process or to any other of the run.

    With several processes JAX's coordination service spreads the notice and names one
    step at which all of them stop, so that they save the same state.
    """

    def __init__(self):
        self._received = False
        self._message: str | None = None  # of the stop, while nothing is unsaved
        self._former_handler = None

    def __enter__(self) -> "Listener":
        """Handles SIGTERM from here on, if called in the main thread."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main_thread:
            self._former_handler = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._former_handler is not None:
            signal.signal(signal.SIGTERM, self._former_handler)

    def _handle(self, number: int, frame: object) -> None:
        del number, frame
        self._received = True
        if self._message is not None:
            raise errors.PreemptedError(self._message)
        logging.warning("SIGTERM: saving after the next step, then leaving.")

    @contextlib.contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Stops at once during a wait, such as for the compiler, with nothing unsaved.

        Args:
            step: steps taken, all of them saved.

        Raises:
            PreemptedError: SIGTERM came before, or comes during the wait.
        """
        message = f"stopped after step {step}, which is saved" if step else "stopped"
        if self._received:
            raise errors.PreemptedError(message)
        self._message = message
        try:
            yield
        finally:
            self._message = None

    def reached(self, step: int) -> bool:
        """Returns True if the run must save and leave now; every process asks it."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

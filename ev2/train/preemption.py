"""Notice that the machine will be taken away: save at the next step, then leave."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils

from ev2 import errors


class Notice:
    """Whether SIGTERM has come, to this process or to any other of the run.

    With several processes JAX's coordination service spreads the notice and names one
    step at which all of them stop, so that they save the same state.
    """

    def __init__(self):
        """Listens to SIGTERM until `close`, if called in the main thread."""
        self._came = False
        self._saved: str | None = None  # what to say where nothing is unsaved
        self._before = None
        in_main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main_thread:
            self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        del number, frame
        self._came = True
        if self._saved is not None:
            raise errors.PreemptedError(self._saved)
        logging.warning("SIGTERM: saving after the next step, then leaving.")

    @contextlib.contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """A wait, such as for the compiler, with nothing unsaved after `step` steps.

        Raises:
            PreemptedError: SIGTERM has come before, or comes meanwhile.
        """
        saved = f"stopped after step {step}, which is saved" if step else "stopped"
        if self._came:
            raise errors.PreemptedError(saved)
        self._saved = saved
        try:
            yield
        finally:
            self._saved = None

    def reached(self, step: int) -> bool:
        """Whether to save and leave now; to be asked after every step, by all."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._came

    def close(self) -> None:
        """Gives SIGTERM its former meaning."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

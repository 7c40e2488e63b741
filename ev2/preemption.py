"""Notice that the machine will be taken away: save at the next step, then leave."""

import signal
import threading

import jax
from absl import logging
from jax.experimental import multihost_utils


class Notice:
    """Whether SIGTERM has come, to this process or to any other of the run.

    With several processes JAX's coordination service spreads the notice and names one
    step at which all of them stop, so that they save the same state.
    """

    def __init__(self):
        """Listens to SIGTERM until `close`, if called in the main thread."""
        self._came = False
        self._before = None
        in_main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main_thread:
            self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        del number, frame
        self._came = True
        logging.warning("SIGTERM: saving after the next step, then leaving.")

    def reached(self, step: int) -> bool:
        """Whether to save and leave now; to be asked after every step, by all."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._came

    def close(self) -> None:
        """Gives SIGTERM its former meaning."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

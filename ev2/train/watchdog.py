"""A run that stands still says where, and ends: better than a machine that waits."""

import faulthandler
import os
import sys
import threading
import time


class Watchdog:
    """Ends the process when no step is done for too long; exit code 1.

    Before that the stacks of all threads go to stderr. Nothing is closed, since that
    could wait for what stands still: what was saved stays.
    """

    def __init__(self, stall_seconds: float):
        """Watches from the first `beat` on; 0 seconds = never."""
        self._seconds = stall_seconds
        self._step: int | None = None  # None: what is done now may take its time
        self._since = time.monotonic()
        self._closed = threading.Event()
        if stall_seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """To be called whenever `step` steps are done."""
        self._since, self._step = time.monotonic(), step

    def rest(self) -> None:
        """Stops watching until the next `beat`: compiling and evaluating take long."""
        self._step = None

    def close(self) -> None:
        """Stops watching."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 5)):
            step = self._step  # before the clock, which `beat` sets first
            if step is not None and time.monotonic() - self._since > self._seconds:
                self._end(step)

    def _end(self, step: int) -> None:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        print(
            f"\nev2: stopped: no step was done for {self._seconds:g} s after step "
            f"{step} (stall_seconds), the stacks above show where it stands; what was "
            "saved stays, and the same command goes on from there",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

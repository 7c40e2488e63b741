"""Workers of a sweep or a search as processes, and what tells them to stop."""

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from ev2.sweeps import runner as trial

# What ends a worker, and its exit code for it.
SIGNALS: dict[int, int] = {signal.SIGTERM: 75, signal.SIGINT: 130}


@contextlib.contextmanager
def listening(stop: Callable[[], object]) -> Iterator[list[int]]:
    """Calls `stop` at each of `SIGNALS`; gives the list of those that came."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        stop()

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_together(commands: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    """Starts a process for each command, passes signals on, waits for all.

    Returns:
      Their exit codes; the signals that came, as `listening`.
    """
    running: list[subprocess.Popen] = []

    def stop() -> None:
        for worker in running:
            worker.terminate()

    with listening(stop) as came:
        for command in commands:
            running.append(
                subprocess.Popen(
                    trial.bound(command),
                    env=trial.environment(),
                    start_new_session=True,  # Ctrl-C is ours
                )
            )
            if came:  # while it was being started
                stop()
                break
        return [worker.wait() for worker in running], came

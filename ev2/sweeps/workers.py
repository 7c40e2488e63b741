"""Starts and stops the processes of workers and runs."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Signals that end a worker, and its exit code for each.
SIGNALS: dict[int, int] = {signal.SIGTERM: 75, signal.SIGINT: 130}
_STOP_S = 60.0  # for a run to save and end


def environment() -> dict[str, str]:
    """Returns this process's environment, with this checkout first on PYTHONPATH."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def start(command: Sequence[str], **options: Any) -> subprocess.Popen:
    """Starts a process that Ctrl-C does not reach.

    Where setpriv of util-linux is installed, SIGTERM ends it when this process dies.
    """
    setpriv = shutil.which("setpriv")
    bound = [setpriv, "--pdeathsig=TERM"] if setpriv else []
    options = {"env": environment(), "start_new_session": True, **options}
    return subprocess.Popen([*bound, *command], **options)


def stop(process: subprocess.Popen) -> None:
    """Lets a run save and end; after a minute kills it with all its children."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def listening(on_signal: Callable[[], object]) -> Iterator[list[int]]:
    """Calls `on_signal` on each of `SIGNALS`; yields the list of received signals."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        on_signal()

    before = {number: signal.signal(number, receive) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_together(commands: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    """Starts a process per command, forwards signals and waits for all processes.

    Returns:
        The exit codes of the processes, and the received signals.
    """
    running: list[subprocess.Popen] = []

    def terminate() -> None:
        for worker in running:
            worker.terminate()

    with listening(terminate) as received:
        for command in commands:
            running.append(start(command))
            if received:  # while it was being started
                terminate()
                break
        return [worker.wait() for worker in running], received


def say(text: str, name: str = "sweep") -> None:
    """Prints one line to stderr; stdout is for tables."""
    print(f"{name}: {text}", file=sys.stderr, flush=True)

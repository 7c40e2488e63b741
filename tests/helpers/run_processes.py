"""`ev2 train` as commands, one process or several that make one run on the CPU."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).parents[2]
TINY = str(ROOT / "tests/helpers/tiny_run.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Crowd:
    """The processes of one run, and their output."""

    def __init__(
        self,
        workdir: pathlib.Path,
        count: int = 1,
        *flags: str,
        recipe: str = TINY,
        compiled: str = "compiled",
        home: pathlib.Path | None = None,
    ):
        """Starts them; logs and programs, in `compiled`, are kept in `home`.

        That is where `workdir` is, unless it is given.
        """
        home = home or workdir.parent
        self.workdir = workdir
        self._logs = [home / f"{workdir.name}-{i}.log" for i in range(count)]
        address = ["--coordinator=127.0.0.1:" + str(free_port())]
        address += [f"--num_processes={count}"]
        self.processes = []
        for i, log in enumerate(self._logs):
            several = [*address, f"--process={i}"] if count > 1 else []
            words = ["train", f"--config={recipe}", f"--workdir={workdir}"]
            with open(log, "w") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ev2", *words, *flags, *several],
                    env=_environment(home / compiled),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self.processes.append(process)

    def has_begun(self) -> bool:
        """Whether the first process has said from where it goes on."""
        return "parameters, on" in self.said()

    def begun_after(self) -> int:
        """The step that it goes on from, 0 if from the start."""
        found = re.search(r"resuming after step ([\d,]+)", self.said())
        return int(found[1].replace(",", "")) if found else 0

    def said(self, number: int = 0) -> str:
        return self._logs[number].read_text()

    def last_step(self) -> int:
        """The last step whose line is in metrics.jsonl, or 0."""
        try:
            lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
            return json.loads(lines[-1])["step"] if lines else 0
        except (OSError, ValueError, IndexError):
            return 0

    def is_saving(self) -> bool:
        folder = self.workdir / "checkpoints"
        return any(folder.glob("*.orbax-checkpoint-tmp*"))

    def when(
        self,
        moment: Callable[["Crowd"], bool],
        number: int = 0,
        *,
        send: int = signal.SIGKILL,
    ) -> bool:
        """Signals process `number` once `moment` has come; False if it never did."""
        while all(process.poll() is None for process in self.processes):
            if moment(self):
                self.processes[number].send_signal(send)
                return True
            time.sleep(0.002)
        return False

    def wait(self, limit_s: float = 600) -> Sequence[int]:
        """Returns the exit codes; kills what is left after `limit_s`."""
        end = time.monotonic() + limit_s
        try:
            for process in self.processes:
                process.wait(max(end - time.monotonic(), 0.1))
        finally:
            for process in self.processes:
                process.kill()
        return [process.wait() for process in self.processes]


def after_step(step: int) -> Callable[[Crowd], bool]:
    return lambda crowd: crowd.has_begun() and crowd.last_step() >= step


def _environment(compiled: pathlib.Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        # One device for each, and the least of compiling.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }

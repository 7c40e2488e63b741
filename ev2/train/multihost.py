"""Joins the processes of one run, makes them agree, and ends them together.

With one process every function returns at once, without communication.
"""

import contextlib
import os
import re
import sys
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ev2 import errors

SILENCE_S = 60  # seconds without a heartbeat after which a process counts as lost
_joined = False
_FLAGS = ("coordinator", "num_processes", "process")
# Errors of collectives when the other end is gone, by gloo and gRPC.
_LOST = re.compile(r"[Gg]loo|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|[Bb]arrier")


@contextlib.contextmanager
def joined(
    *,
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process: int | None = None,
) -> Iterator[None]:
    """Joins the other processes of the run, if there are any; all leave together.

    Must be entered before any device is opened.

    Args:
      distributed: finds the other processes through Cloud TPU, Slurm or Open MPI.
      coordinator: "HOST:PORT" of process 0, otherwise.
      num_processes: number of processes.
      process: index of this process, from 0.

    Raises:
      InputError: the flags contradict each other, or no other process is found.
    """
    address = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process,
    }
    given = [value is not None for value in address.values()]
    if not distributed and not any(given):
        yield
        return
    _check_flags(distributed, coordinator, num_processes, process)
    _join({} if distributed else address)
    try:
        yield
    except (errors.PreemptedError, FloatingPointError):
        _leave()  # all have seen the same
        raise
    _leave()


def _check_flags(distributed, coordinator, num_processes, process) -> None:
    values = dict(zip(_FLAGS, (coordinator, num_processes, process), strict=True))
    given = [name for name, value in values.items() if value is not None]
    if distributed and given:
        raise errors.InputError(
            f"{given[0]}: not allowed with --distributed, which finds it by itself; "
            "give one of the two"
        )
    if distributed:
        return
    for name in _FLAGS:
        if name not in given:
            raise errors.InputError(
                f"{name}: missing; --coordinator=HOST:PORT, --num_processes and "
                "--process go together"
            )
    if not re.fullmatch(r"\S+:\d{1,5}", coordinator):
        raise errors.InputError(
            f"coordinator: {coordinator!r} is not allowed; give HOST:PORT of process 0"
        )
    if num_processes < 1:
        raise errors.InputError(
            f"num_processes: {num_processes} is not allowed; give 1 or more"
        )
    if not 0 <= process < num_processes:
        raise errors.InputError(
            f"process: {process} is not allowed; give 0 to {num_processes - 1}"
        )


def _join(address: dict[str, Any]) -> None:
    global _joined
    _joined = True
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **address,
            heartbeat_timeout_seconds=SILENCE_S,
            shutdown_timeout_seconds=SILENCE_S,
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        if not address:
            raise errors.InputError(
                "distributed: neither Cloud TPU nor Slurm nor Open MPI is found here "
                f"({reason}); give --coordinator, --num_processes and --process"
            ) from error
        raise errors.InputError(
            f"coordinator: the processes do not meet at "
            f"{address['coordinator_address']} ({reason}); start all of them, with an "
            "address of process 0 that all of them reach"
        ) from error


def have_joined() -> bool:
    """Returns True if this process has joined others; opens no device."""
    return _joined


def _are_several() -> bool:
    """True if the run has other processes; opens no device for a single one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _leave() -> None:
    """Waits for all processes and disconnects."""
    jax.distributed.shutdown()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raises InputError on every process if the block raises it on any of them.

    Raises:
      InputError: this process's own, or one that names the process which refused.
    """
    refusal = None
    try:
        yield
    except errors.InputError as error:
        refusal = error
    if _are_several():
        refused = _gather(np.int32(refusal is not None)).tolist()
        if any(refused):
            _leave()
            if refusal is None:
                refusal = errors.InputError(
                    f"process {refused.index(1)} of {len(refused)} has refused its "
                    "input; its own message says why"
                )
    if refusal is not None:
        raise refusal


def check_same(what: str, text: str) -> None:
    """Raises InputError if `text` is not the same on all processes."""
    if not _are_several():
        return
    sums = _gather(np.uint32(zlib.crc32(text.encode()))).tolist()
    other = next((i for i, value in enumerate(sums) if value != sums[0]), None)
    if other is not None:
        raise errors.InputError(
            f"{what}: process {other} of {len(sums)} differs from process 0; "
            "start the same commit with the same flags and data on all of them"
        )


def from_first(number: int) -> int:
    """Returns process 0's `number`, below 2**31, on every process."""
    if not _are_several():
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def count_distinct(numbers: Collection[int]) -> int:
    """Returns the count of distinct numbers over all processes."""
    if not _are_several():
        return len(set(numbers))
    most = int(_gather(np.int32(len(numbers))).max())
    if most == 0:
        return 0
    row = np.full((most, 2), -1, np.int32)  # in two halves: JAX has 32 bits
    for i, number in enumerate(numbers):
        row[i] = divmod(number, 2**31)
    rows = _gather(row).reshape(-1, 2)
    return len({tuple(pair) for pair in rows.tolist() if pair[0] >= 0})


def _gather(value: np.ndarray | np.generic) -> np.ndarray:
    """`value` of every process, stacked."""
    return np.asarray(multihost_utils.process_allgather(value))


@contextlib.contextmanager
def end_on_lost_process() -> Iterator[None]:
    """Ends this process at once, with exit code 1, when another process is lost.

    An orderly close would wait for the lost process: a save needs all of them.
    """
    try:
        yield
    except (RuntimeError, ValueError, TimeoutError) as error:
        ours = isinstance(error, errors.InputError | errors.PreemptedError)
        if not _are_several() or ours or not _LOST.search(str(error)):
            raise
        reason = str(error).strip().partition("\n")[0]
        print(
            f"\nev2: process {jax.process_index()} of {jax.process_count()} stops, as "
            f"another process is gone or out of reach ({reason}); what was saved "
            "stays, and the same command on all of them resumes from there",
            file=sys.stderr,
        )
        end()


def end(code: int = 1) -> None:
    """Ends the process without closing anything, which could wait for a lost one."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)

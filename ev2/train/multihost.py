"""The processes of one run: they join, agree, and leave together.

A run of one process pays nothing: there is nobody to ask then.
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

SILENCE_S = 60  # after which a process that says nothing counts as lost
_joined = False
_FLAGS = ("coordinator", "num_processes", "process")
# What collectives say when the other end is gone: gloo's and gRPC's words.
_LOST = re.compile(r"[Gg]loo|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|[Bb]arrier")


@contextlib.contextmanager
def joined(
    *,
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process: int | None = None,
) -> Iterator[None]:
    """Makes this one of several processes, if it is told to; they leave together.

    Must come before anything that opens a device.

    Args:
      distributed: whether Cloud TPU, Slurm or Open MPI says who the others are.
      coordinator: "HOST:PORT" of process 0, where nobody says so.
      num_processes: how many there are.
      process: which of them this is, from 0.

    Raises:
      InputError: the flags do not fit, or the environment does not say.
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
            f"{given[0]}: not together with --distributed, which finds it out; give "
            "one of the two"
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
    """Whether this process has ever joined others; opens no device."""
    return _joined


def _are_several() -> bool:
    """Whether there are others; alone, no device is opened to find out."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _leave() -> None:
    """Waits for all others to come here too, and lets go of them."""
    jax.distributed.shutdown()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A part that may refuse its input on one process: then all of them leave.

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
            f"{what}: process {other} of {len(sums)} has another than process 0; "
            "start the same commit with the same flags and data on all of them"
        )


def from_first(number: int) -> int:
    """What process 0 gives as `number`, on all of them; below 2**31."""
    if not _are_several():
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def count_distinct(numbers: Collection[int]) -> int:
    """How many different numbers there are on all processes taken together."""
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
def alarm() -> Iterator[None]:
    """Ends this process at once, with exit code 1, where another one is lost.

    Closing in order would wait for the lost one: a save in flight needs all of them.
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
            "stays, and the same command on all of them goes on from there",
            file=sys.stderr,
        )
        end()


def end(code: int = 1) -> None:
    """Leaves without closing anything, which could wait for what is lost."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)

"""Runs tasks through Apache Beam, one element each, and waits for their results."""

import contextlib
import dataclasses
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from ev2 import errors
from ev2.data import storage
from ev2.data.prepare import shards
from ev2.data.tensorflow import tf

LOCAL = "DirectRunner"
FAILURE = "failure.txt"  # in the state: the error of storage, or STOPPED
STOPPED = b"stopped"
POLL_SECONDS = 1.0  # between two counts of results


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """Runner of Beam and its options.

    Attributes:
        runner: name of the runner; "DirectRunner" stays in this process.
        workers: threads of the direct runner; 0 = one per core.
        beam: more options without their dashes, such as "region=europe-west4".
    """

    runner: str = LOCAL
    workers: int = 0
    beam: tuple[str, ...] = ()


def check(options: BeamOptions) -> None:
    """Raises InputError if Beam is not installed or refuses the options."""
    if options.workers < 0:
        raise errors.InputError(
            f"workers: {options.workers}; give 0, one per core, or more"
        )
    try:
        _import_beam()
    except ImportError as error:
        raise errors.InputError(
            f"prepare: Apache Beam cannot be imported ({error}); pip install "
            "'ev2[prepare]'"
        ) from None
    try:
        _pipeline_options(options)
    except (ValueError, SystemExit) as error:
        raise errors.InputError(
            f"runner, beam: {options.runner!r}, {list(options.beam)}: {error}"
        ) from None


def _import_beam() -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # about missing parts of Google Cloud
    try:
        import apache_beam
        import apache_beam.options.pipeline_options
        import apache_beam.runners.runner
    finally:
        logging.disable(before)
    return apache_beam


def _pipeline_options(options: BeamOptions) -> Any:
    beam = _import_beam()
    flags = [f"--{option}" for option in options.beam]
    if options.runner == LOCAL:
        # By its own name "DirectRunner" would first try to download another runner.
        flags += [
            "--runner=FnApiRunner",
            f"--direct_num_workers={options.workers or os.cpu_count()}",
            "--direct_running_mode=multi_threading",
        ]
    else:
        beam.runners.runner.create_runner(options.runner)  # refuses an unknown name
        flags.append(f"--runner={options.runner}")
    return beam.options.pipeline_options.PipelineOptions(flags)


def run(
    task: Callable[[str, str], None],
    out: str,
    names: Sequence[str],
    *,
    suffix: str,
    title: str,
    options: BeamOptions,
) -> None:
    """Runs `task(out, name)` for each name without a result.

    Args:
        task: a function of a module; it writes `NAME` + `suffix` into the state.
        out: folder that is filled.
        names: names of the tasks.
        suffix: ending of the results.
        title: action of the tasks, for the progress bar and messages.
        options: runner of Beam.

    Raises:
        InputError: storage cannot be read or written.
    """
    done = _done(out, names, suffix)
    missing = [name for name in names if name not in done]
    if not missing:
        return
    print(f"{title}: {len(missing):,} of {len(names):,}", flush=True)
    is_local = options.runner == LOCAL
    function = functools.partial(_attempt, task, out, retried=not is_local)
    try:
        stopper = _stopped_by_ctrl_c(out) if is_local else contextlib.nullcontext()
        with _progress(out, missing, suffix, title), stopper:
            _run_pipeline(function, missing, options)
        if not is_local and _failed(out):  # a retry has succeeded
            tf.io.gfile.remove(_failure_path(out))
    except Exception:
        if not _failed(out):
            raise
    if _failed(out):
        failure = storage.read_file(_failure_path(out))
        if failure == STOPPED:
            raise KeyboardInterrupt
        raise errors.InputError(
            f"out: {title} stopped: {failure.decode()}; finished shards stay, run it"
            " again to resume"
        )


def _run_pipeline(
    function: Callable[[str], None], names: Sequence[str], options: BeamOptions
) -> None:
    beam = _import_beam()
    with beam.Pipeline(options=_pipeline_options(options)) as pipeline:
        # Without the shuffle, tasks could be fused into one bundle on one worker.
        _ = pipeline | beam.Create(names) | beam.Reshuffle() | beam.Map(function)


def _attempt(
    task: Callable[[str, str], None], out: str, name: str, *, retried: bool
) -> None:
    """Runs a task; if storage fails, writes the reason into the state.

    A runner that retries elsewhere gets the error. The direct runner would print a
    stack trace; it skips the remaining tasks instead.
    """
    if not retried and _failed(out):
        return
    try:
        task(out, name)
    except (*storage.ERRORS, errors.InputError) as error:
        line = " ".join(str(error).split())
        shards.write_state(out, FAILURE, f"{name}: {line}".encode())
        if retried:
            raise


@contextlib.contextmanager
def _stopped_by_ctrl_c(out: str) -> Iterator[None]:
    """Finishes running tasks at the first Ctrl-C and skips the remaining ones.

    Killing threads inside TensorFlow would crash the process.
    """

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGINT, before)
        shards.write_state(out, FAILURE, STOPPED)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _failure_path(out: str) -> str:
    return shards.in_state(out, FAILURE)


def _failed(out: str) -> bool:
    return tf.io.gfile.exists(_failure_path(out))


def _done(out: str, names: Sequence[str], suffix: str) -> set[str]:
    """Returns the names of the tasks with a result."""
    results = set(storage.list_names(os.path.join(out, shards.STATE)))
    return {name for name in names if name + suffix in results}


@contextlib.contextmanager
def _progress(
    out: str, names: Sequence[str], suffix: str, title: str
) -> Iterator[None]:
    """Shows the number of results of all workers on a terminal."""
    bar = tqdm.tqdm(total=len(names), desc=title, unit="task", disable=None)
    stopped = threading.Event()

    def update() -> None:
        bar.update(len(_done(out, names, suffix)) - bar.n)

    def keep_updating() -> None:
        while not stopped.wait(POLL_SECONDS):
            started = time.monotonic()
            update()
            stopped.wait(10 * (time.monotonic() - started))  # slow storage, rarely

    thread = threading.Thread(target=keep_updating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        update()
        bar.close()

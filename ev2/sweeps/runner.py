"""A trial as a process: a whole job in a folder of its own, followed to its end."""

import contextlib
import dataclasses
import fcntl
import functools
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ev2 import errors
from ev2.sweeps import study as tries
from ev2.sweeps import trial_files

Values = Mapping[str, Any]  # of a trial
Read = Callable[[str], str | None]  # of a file's name in a trial's folder: its text

ROOT = pathlib.Path(__file__).resolve().parents[2]
PREEMPTED = 75
SIGNALLED = tuple(-number for number in signal.valid_signals())
# What ends a job from outside: told to stop, and a shell's codes for killed ones.
LOCAL_DEATHS = (
    *(PREEMPTED, 128 + signal.SIGKILL, 128 + signal.SIGTERM),
    *SIGNALLED,
)
LOST = "lost"  # others hold the trial for dead and have taken it over
_STOP_S = 60.0  # for a job to save and leave
_LOCK_S = 300.0  # for a former worker's job to do so
_MOST_DEATHS = 2  # one after another, on a node


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What trials are about.

    Attributes:
      name: what lines for people begin with.
      trials: how many points there are.
      suggest: of a trial: its values; None if another trial has them, and this one is
        to be drawn anew. It may be called again and again.
      words: of the values, what `Machine.command` is given.
      score: name of the score in the job's files.
      prune: of the pruner, for reasons.
      rate: of the score in those files and the values: what it is worth; None: the
        files do not say.
      worth: what that is called; "": as the score.
      standing: how all trials stand, for the line of one that has ended.
      notes: of the end and the values: what else to keep with the trial.
      worst: what a trial that failed counts as; None: it has no score.
      limit_s: seconds after which a try has failed.
    """

    name: str
    trials: int
    suggest: Callable[[Any], Values | None]
    words: Callable[[Values], list[str]]
    score: str
    prune: str
    rate: Callable[[float, Values, Read], float | None] = lambda score, *_: score
    worth: str = ""
    standing: Callable[[], str] = lambda: ""
    notes: Callable[["End", Values, Read], Mapping[str, Any]] = lambda *_: {}
    worst: float | None = None
    limit_s: float = math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where trials run.

    Attributes:
      out: folder of the sweep on this machine, for logs.
      name: what the machine is called in the table; "" for this one.
      command: of the trial's words, its folder's name and whether it goes on with what
        it began here: what to run.
      read: of the folder's name and a file's: the text, None if there is none.
      stop: ends the process, and what runs elsewhere for it; is given what waits for
        some seconds and says that the trial lives.
      deaths: exit codes that another try may not have; -N is signal N.
      refusals: exit codes that say that no job can run here.
      score_s: seconds between two looks at the scores.
    """

    out: pathlib.Path
    name: str
    command: Callable[[Sequence[str], str, bool], list[str]]
    read: Callable[[str, str], str | None]
    stop: Callable[[subprocess.Popen, Callable[[float], object]], None]
    deaths: Sequence[int]
    refusals: Sequence[int] = ()
    score_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds: `poll_s` between looks at jobs and for work, `beat_s` between beats."""

    poll_s: float
    beat_s: float


@dataclasses.dataclass(frozen=True)
class End:
    """How a trial ended: one of the words of `ev2.sweeps.study`, or LOST."""

    kind: str
    score: float | None = None
    reason: str = ""


def work(
    trials: tries.Trials,
    task: Task,
    machine: Machine,
    pace: Pace,
    stopping: threading.Event,
) -> bool:
    """Runs trials until all points have ended; False if told to stop before.

    Raises:
      StoppedError: jobs die on the machine, one after another, or it can run none.
      UnreachableError: the storage has been away for too long.
    """
    deaths = 0
    while not stopping.is_set():
        trial = trials.claim(machine.name)
        if trial is not None:
            end = _work_on(trial, trials, task, machine, pace, stopping)
            deaths = deaths + 1 if end.kind == tries.DIED else 0
            if machine.name and deaths == _MOST_DEATHS:
                raise errors.StoppedError(
                    f"{machine.name}: {deaths} trials died one after another, the "
                    f"last with: {end.reason}; its worker ends"
                )
            if end.kind == tries.STOPPED and not stopping.is_set():
                raise errors.StoppedError(
                    f"no trial can be run or scored here: {end.reason}"
                )
        elif trials.look():
            return True
        else:
            stopping.wait(pace.poll_s * random.uniform(0.5, 1.5))
    return False


def _work_on(trial, trials, task: Task, machine, pace, stopping) -> End:
    started = time.monotonic()
    try:
        values = trials.patiently(lambda: task.suggest(trial))
    except errors.InputError as error:  # there is nothing left to suggest
        trials.finish(trial, tries.FAILED, reason=str(error))
        return End(tries.FAILED, reason=str(error))
    if values is None:
        trials.finish(trial, tries.REPEATED, reason="another trial has its values")
        return End(tries.REPEATED)
    folder, again = _choose_folder(machine, trial.user_attrs)
    number = trial.user_attrs["point"] + 1
    head = f"trial {number}/{task.trials}"
    text = ", ".join(f"{key}={value}" for key, value in values.items())
    say(f"{head}: {'again, ' if again else ''}{text}", task.name)
    trials.note(trial, {"folder": folder, "node": machine.name})
    read = functools.partial(machine.read, folder)
    watch = _Watch(
        trial, trials, task, values=values, read=read, pace=pace, stopping=stopping
    )
    command = machine.command(task.words(values), folder, again)
    end = _run(command, machine, folder, watch)
    seconds = round(time.monotonic() - started, 1)
    if end.kind == tries.FAILED and task.worst is not None:
        end = End(tries.DONE, task.worst, end.reason)
    notes = task.notes(end, values, read)
    if end.kind != LOST and not trials.finish(
        trial, end.kind, end.score, end.reason, {"seconds": seconds, **notes}
    ):
        end = End(LOST)
    score = "" if end.score is None else f"{task.worth or task.score} {end.score:.5g}"
    reason = end.reason if end.kind != LOST else "taken over by another worker"
    said = (end.kind, score, reason, f"{seconds} s", task.standing())
    say(f"{head}: {', '.join(filter(None, said))}", task.name)
    return end


def _choose_folder(machine: Machine, notes: Mapping[str, Any]) -> tuple[str, bool]:
    """The folder's name, and whether a try of the trial began it on this machine.

    On one machine every try goes on in the same folder. A job on another node may still
    be running, unseen: then the folder is a new one.
    """
    folder, again = f"{notes['point']:04d}", notes["try"] > 0
    if not machine.name or not again:
        return folder, again
    if notes.get("node") == machine.name and "folder" in notes:
        return notes["folder"], True
    return f"{folder}-{notes['try']}", False


class _Watch:
    """What happens to a trial while its job runs."""

    def __init__(
        self, trial, trials, task: Task, *, values: Values, read: Read, pace, stopping
    ):
        self._trial, self._trials, self._task = trial, trials, task
        self._values, self.read, self.pace = values, read, pace
        self._stopping = stopping
        self._next_beat = self._reported = 0
        self._limit = math.inf  # while a former job is waited for

    def begin(self) -> None:
        """The job's time begins."""
        self._limit = time.monotonic() + self._task.limit_s

    def end(self, look: Callable[[], Sequence[float]], last: Callable) -> End | None:
        """The end, if the job is to be ended now; `last`: whether it is over anyway."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + self.pace.beat_s
            if not self._trials.beat(self._trial):
                return End(LOST)
            self._trials.look()
        if (stopped := self.stopped()) is not None:
            return stopped
        if self.report(look()) and not last():
            after = f"after evaluation {self._reported}"
            return End(tries.PRUNED, reason=f"{self._task.prune}, {after}")
        if time.monotonic() > self._limit and not last():
            limit = f"{self._task.limit_s:g} s"
            return End(tries.FAILED, reason=f"it took longer than {limit}")
        return None

    def stopped(self) -> End | None:
        """The end, if the worker was told to stop."""
        if not self._stopping.is_set():
            return None
        return End(tries.STOPPED, reason="its worker was told to stop")

    def wait(self, seconds: float) -> None:
        """Waits while a job is being ended."""
        self._trials.beat(self._trial)
        time.sleep(seconds)

    def report(self, scores: Sequence[float]) -> bool:
        """Hands on scores that are new; whether the pruner ends the trial."""
        for score in scores[self._reported :]:
            self._reported += 1
            worth = self._task.rate(score, self._values, self.read)
            if worth is not None and self._trials.report(
                self._trial, self._reported, worth
            ):
                return True
        return False

    def result(self) -> End:
        """The end of a job that has ended well."""
        text, name = self.read("eval.json"), self._task.score
        score = trial_files.read_score(text, name)
        if score is None:
            # A name that one job does not know, no other will: nothing else is tried.
            unknown = trial_files.lacks(text, name) and not self._has_scores()
            kind = tries.STOPPED if unknown else tries.FAILED
            return End(kind, reason=trial_files.explain_no_score(text, name))
        worth = self._task.rate(score, self._values, self.read)
        if worth is None:
            return End(tries.FAILED, reason="what it left does not say what it costs")
        return End(tries.DONE, worth)

    def _has_scores(self) -> bool:
        """Whether any trial has been scored."""
        return any(trial.state in tries.SCORED for trial in self._trials.read())

    def scores(self) -> list[float]:
        """The scores of the job's evaluations so far."""
        return trial_files.read_scores(self.read("metrics.jsonl"), self._task.score)


def _run(command: list[str], machine: Machine, folder: str, watch: _Watch) -> End:
    path = machine.out / "trials" / folder
    path.parent.mkdir(parents=True, exist_ok=True)
    # The job inherits the lock, so it is held until both its worker and it are gone.
    with open(f"{path}.lock", "w") as lock:
        if (end := _wait_for(lock, watch)) is not None:
            return end
        watch.begin()
        log = open(f"{path}.log", "ab")
        before = log.tell()  # bytes of former tries
        with log, _started(command, log, lock, machine, watch) as process:
            end = _follow(process, machine, watch)
        if end is not None:
            return end
        watch.report(watch.scores())
        code = process.returncode
        if code == 0:
            return watch.result()
        reason = trial_files.read_reason(f"{path}.log", before) or f"exit code {code}"
        if code < 0:
            reason = f"its job was ended by {signal.Signals(-code).name}"
        if code in machine.refusals:
            return End(tries.STOPPED, reason=reason)
        if code not in machine.deaths or (code >= 0 and "not finite" in reason):
            return End(tries.FAILED, reason=reason)
        # Whoever stops a worker may have stopped its job before.
        return watch.stopped() or End(tries.DIED, reason=reason)


def _wait_for(lock, watch: _Watch) -> End | None:
    """Waits until a job that outlived its worker has left; the end if it does not."""
    limit = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except OSError:
            if (end := watch.end(tuple, bool)) is not None:
                return end
        if time.monotonic() > limit:
            return End(tries.DIED, reason=f"a former try still runs: {lock.name}")
        time.sleep(min(watch.pace.poll_s, 1))


@contextlib.contextmanager
def _started(
    command, log, lock, machine: Machine, watch: _Watch
) -> Iterator[subprocess.Popen]:
    """The job; ended after the block, if it has not ended by itself."""
    process = subprocess.Popen(
        bound(command),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is ours; the job is told to save
        pass_fds=(lock.fileno(),),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            machine.stop(process, watch.wait)


def _follow(process, machine: Machine, watch: _Watch) -> End | None:
    """Returns the end if the job was ended, None when it has ended by itself."""
    scores: list[float] = []
    next_look = time.monotonic() + machine.score_s

    def look() -> list[float]:
        nonlocal scores, next_look
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + machine.score_s
            scores = watch.scores()
        return scores

    def is_over() -> bool:
        return trial_files.is_over(
            watch.read("stages.json"), watch.read("metrics.jsonl")
        )

    while True:
        if (end := watch.end(look, is_over)) is not None:
            return end
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=watch.pace.poll_s)
            return None


def stop(process: subprocess.Popen, wait: Callable[[float], object]) -> None:
    """Tells a job to save and leave; after a minute kills it with all it started."""
    del wait
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment() -> dict[str, str]:
    """Ours, with the ev2 of this checkout found first."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def bound(command: Sequence[str]) -> list[str]:
    """Returns `command`, to be told to stop when the process that starts it is gone.

    On Linux, by setpriv of util-linux; elsewhere it is the command as it is.
    """
    found = shutil.which("setpriv")
    return [*([found, "--pdeathsig=TERM"] if found else []), *command]


def say(text: str, name: str = "sweep") -> None:
    """Writes one line to stderr; stdout is the table's."""
    print(f"{name}: {text}", file=sys.stderr, flush=True)

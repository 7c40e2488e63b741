"""Runs the trials of a shared study, each attempt as a process in its own folder."""

import contextlib
import dataclasses
import fcntl
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import optuna

from ev2 import errors
from ev2.sweeps import study as studies
from ev2.sweeps import workers
from ev2.train import workdir

# Exit codes of a run that was stopped from outside: preempted, killed by a shell or by
# a signal.
PREEMPTED = 75
SIGNALLED = tuple(-number for number in signal.valid_signals())
LOCAL_DEATHS = (PREEMPTED, 128 + signal.SIGKILL, 128 + signal.SIGTERM, *SIGNALLED)
_LOCK_S = 300.0  # for the run of an earlier attempt to end
_MOST_DEATHS = 2  # in succession, on one node
_TAIL_BYTES, _REASON_CHARS = 8192, 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that runs trials.

    Attributes:
        out: folder on this machine; a run is trials/FOLDER, its log trials/FOLDER.log.
        name: name of the node; "" for this machine.
        command: returns the command to run, given the trial's arguments, the name of
            the folder, and True if the folder has the run of an earlier attempt.
        refresh: copies the files of a folder from the node to this machine.
        stop: ends the run and the processes that it started elsewhere.
        deaths: exit codes after which a run is retried; -N is signal N.
        refusals: exit codes after which no run can succeed on this machine.
        look_s: seconds between two reads of a run's files.
    """

    out: pathlib.Path
    name: str = ""
    command: Callable[[Sequence[str], str, bool], list[str]]
    refresh: Callable[[str], object] = lambda folder: None
    stop: Callable[[subprocess.Popen], object] = workers.stop
    deaths: Sequence[int] = LOCAL_DEATHS
    refusals: Sequence[int] = ()
    look_s: float


class End(NamedTuple):
    """The end of an attempt, as named in `ev2.sweeps.study`."""

    kind: str
    value: float | None = None
    reason: str = ""


class EndedEarly(Exception):
    """An attempt without a value; the argument is its `End`."""


def end_early(kind: str, reason: str) -> NoReturn:
    """Ends the attempt by raising EndedEarly."""
    raise EndedEarly(End(kind, reason=reason))


class Objective:
    """The function that `SharedStudy.optimize` calls: it runs one attempt.

    Attributes:
        name: name of the command, the prefix of log lines.
        score: name of the score in eval.json and in the evaluations of metrics.jsonl.
        value_name: name of the value to optimize.
        failure_value: value of a failed trial; None for no value.
        limit_s: seconds after which a run has failed.
        trial, values, run: Optuna's trial, the suggested values and the folder of the
            current attempt.
    """

    name = "sweep"
    failure_value: float | None = None
    limit_s = math.inf
    trial: optuna.Trial
    values: Mapping[str, Any]
    run: pathlib.Path

    def __init__(
        self,
        study: studies.SharedStudy,
        machine: Machine,
        stopping: threading.Event,
        *,
        score: str,
        poll_s: float,
    ):
        self.study, self.machine, self.score = study, machine, score
        self.value_name = score
        self._stopping, self._poll_s = stopping, poll_s
        self._deaths, self._hopeless = 0, ""
        self._reported, self._next_check = 0, 0.0

    def suggest(self) -> Mapping[str, Any]:
        """Returns the values of the trial; may raise EndedEarly."""
        raise NotImplementedError

    def arguments(self) -> list[str]:
        """Returns the values as arguments of the command."""
        raise NotImplementedError

    def rate(self, score: float) -> float | None:
        """Returns the value of a score; None if a file of the run is missing."""
        return score

    def notes(self, end: End) -> Mapping[str, Any]:
        """Returns further attributes of the ended attempt."""
        del end
        return {}

    def progress(self) -> str:
        """Returns the state of all trials for the log line of an ended trial."""
        return ""

    def work(self) -> bool:
        """Runs trials until all have ended; returns False if stopped earlier.

        Raises:
            StoppedError: runs die on the machine in succession, or none can succeed.
        """
        while not self._stopping.is_set():
            try:
                self.study.optimize(self, catch=(EndedEarly,), callbacks=[self._follow])
            except studies.NothingWaiting:
                if self.study.is_finished():
                    return True
                self._stopping.wait(self._poll_s * random.uniform(0.5, 1.5))
            except (ValueError, AssertionError) as error:
                if "Cannot tell a" not in f"{error} {error.__context__}":
                    raise
                workers.say("the trial was taken over by another worker", self.name)
        return False

    def _follow(self, study: optuna.Study, attempt: optuna.trial.FrozenTrial) -> None:
        """Retries an open trial; `optimize` calls it after each attempt."""
        self.study.retry(attempt)
        if self._stopping.is_set():
            study.stop()
        elif self._hopeless:
            raise errors.StoppedError(self._hopeless)

    def __call__(self, trial: optuna.Trial) -> float:
        """Runs an attempt and returns its value.

        Raises:
            EndedEarly, optuna.TrialPruned: the attempt has no value.
        """
        started = time.monotonic()
        self.trial, self.values, self._reported = trial, {}, 0
        index, folder = trial.user_attrs["index"], self._choose_folder()
        self.run = self.machine.out / "trials" / folder
        label = f"trial {index} of {len(self.study.spec.params)}"
        try:
            self.values = self.suggest()
            resumes = trial.user_attrs.get("folder") == folder
            studies.note(trial, folder=folder, node=self.machine.name)
            text = ", ".join(f"{key}={value}" for key, value in self.values.items())
            workers.say(f"{label}: {'again, ' * resumes}{text}", self.name)
            end = self._run(self.machine.command(self.arguments(), folder, resumes))
        except EndedEarly as error:
            end = error.args[0]
        if end.kind == studies.FAILED:
            end = end._replace(value=self.failure_value)
        seconds = round(time.monotonic() - started, 1)
        notes = {**self.notes(end), "seconds": seconds}
        studies.note(trial, **notes, end=end.kind, reason=end.reason)
        value = "" if end.value is None else f"{self.value_name} {end.value:.5g}"
        words = (end.kind, value, end.reason, f"{seconds} s", self.progress())
        workers.say(f"{label}: {', '.join(filter(None, words))}", self.name)
        self._judge_machine(end)
        if end.kind == studies.PRUNED:
            raise optuna.TrialPruned(end.reason)
        if end.value is None:
            raise EndedEarly(end)
        return end.value

    def _choose_folder(self) -> str:
        """Returns the folder of the first attempt if this node can resume it.

        Otherwise returns a new folder: on another node the earlier run may be active.
        """
        notes, first = self.trial.user_attrs, f"{self.trial.user_attrs['index']:04d}"
        if "folder" not in notes or not self.machine.name:
            return first
        same = notes["node"] == self.machine.name
        return notes["folder"] if same else f"{first}-{self.trial.number}"

    def _judge_machine(self, end: End) -> None:
        """Sets the reason to end this worker, if there is one."""
        self._deaths = self._deaths + 1 if end.kind == studies.DIED else 0
        if self.machine.name and self._deaths == _MOST_DEATHS:
            self._hopeless = (
                f"{self.machine.name}: {self._deaths} trials died in succession, the "
                f"last with: {end.reason}; its worker ends"
            )
        elif end.kind == studies.STOPPED and not self._stopping.is_set():
            self._hopeless = f"no trial can be run or scored here: {end.reason}"

    def _run(self, command: Sequence[str]) -> End:
        self.run.parent.mkdir(parents=True, exist_ok=True)
        # The run inherits the lock, which is held until run and worker have ended.
        files = open(f"{self.run}.lock", "w"), open(f"{self.run}.log", "ab")
        with files[0] as lock, files[1] as log:
            self._wait_for(lock)
            before = log.tell()
            output = {"stdout": log, "stderr": subprocess.STDOUT}
            process = workers.start(
                command, stdin=subprocess.DEVNULL, pass_fds=(lock.fileno(),), **output
            )
            try:
                self._watch(process)
            finally:
                if process.poll() is None:
                    self.machine.stop(process)
        code = process.returncode
        if code == 0:
            self._report()
            return self._finish()
        reason = _read_reason(f"{self.run}.log", before) or f"exit code {code}"
        if code < 0:
            reason = f"its run was ended by {signal.Signals(-code).name}"
        if code in self.machine.refusals:
            return End(studies.STOPPED, reason=reason)
        if code not in self.machine.deaths or (code >= 0 and "not finite" in reason):
            return End(studies.FAILED, reason=reason)
        self._check()  # a stop of the worker may reach its run first
        return End(studies.DIED, reason=reason)

    def _wait_for(self, lock) -> None:
        """Waits until the run of an earlier attempt has ended."""
        limit = time.monotonic() + _LOCK_S
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._check()
            if time.monotonic() > limit:
                end_early(studies.DIED, f"an earlier attempt still runs: {lock.name}")
            time.sleep(min(self._poll_s, 1))

    def _check(self) -> None:
        """Ends the attempt if the worker must stop or has lost the trial."""
        if self._stopping.is_set():
            end_early(studies.STOPPED, "its worker was told to stop")
        if time.monotonic() > self._next_check:
            self._next_check = time.monotonic() + self.study.spec.heartbeat_s
            if not self.study.is_running(self.trial):
                end_early(studies.STOPPED, "another worker has it")

    def _watch(self, process: subprocess.Popen) -> None:
        """Waits for the end of a run; ends the attempt early if pruned or too slow."""
        limit = time.monotonic() + self.limit_s
        next_look = time.monotonic() + self.machine.look_s
        while process.poll() is None:
            self._check()
            if time.monotonic() > next_look:
                next_look = time.monotonic() + self.machine.look_s
                if self._report() and not _is_over(self.run):
                    end_early(
                        studies.PRUNED, f"pruned after evaluation {self._reported}"
                    )
                if time.monotonic() > limit and not _is_over(self.run):
                    end_early(studies.FAILED, f"it took longer than {self.limit_s:g} s")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=self._poll_s)

    def _report(self) -> bool:
        """Reports new evaluations to Optuna; True if the pruner ends the attempt."""
        self.machine.refresh(self.run.name)
        for score in read_scores(self.run, self.score)[self._reported :]:
            self._reported += 1
            value = self.rate(score)
            if value is not None:
                self.trial.report(value, self._reported)
                if self.trial.should_prune():
                    return True
        return False

    def _finish(self) -> End:
        """Returns the end of a run whose process has succeeded."""
        result = _read_result(self.run)
        score = read_score(self.run, self.score)
        if score is not None:
            value = self.rate(score)
            if value is None:
                end_early(studies.FAILED, "what it left does not say what it costs")
            return End(studies.DONE, value)
        if not result:
            end_early(studies.FAILED, "it left no eval.json that can be read")
        if self.score in result:
            end_early(studies.FAILED, f"its eval.json has no number as {self.score!r}")
        reason = f"its eval.json has no {self.score!r}; there: {', '.join(result)}"
        # A score that the first run lacks is missing in all runs.
        scored = (studies.DONE, studies.PRUNED)
        is_first = not any(o.state in scored for o in self.study.outcomes())
        end_early(studies.STOPPED if is_first else studies.FAILED, reason)


def read_scores(run: pathlib.Path, name: str) -> list[float]:
    """Returns the scores of a run's evaluations, up to the first without a score."""
    lines, _ = workdir.read_metrics(run / "metrics.jsonl")
    scores = []
    for line in lines:
        if line["split"] == "eval":
            score = _find_number(workdir.flatten(line, "."), name)
            if score is None:
                break
            scores.append(score)
    return scores


def read_score(run: pathlib.Path, name: str) -> float | None:
    """Returns the final score of a run; None without a finite number."""
    return _find_number(_read_result(run), name)


def _read_result(run: pathlib.Path) -> dict[str, Any]:
    """Returns the values of eval.json, as "ema.top1"; {} if it cannot be read."""
    with contextlib.suppress(errors.InputError):
        return workdir.flatten(workdir.read_json(run / "eval.json") or {}, ".")
    return {}


def _find_number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _is_over(run: pathlib.Path) -> bool:
    """Returns True after the last step of the run, before its result is written."""
    lines, _ = workdir.read_metrics(run / "metrics.jsonl")
    with contextlib.suppress(errors.InputError, LookupError, TypeError):
        stages = (workdir.read_json(run / "stages.json") or {})["stages"]
        return lines[-1]["step"] >= stages[-1]["last_step"]
    return False


def _read_reason(log: str, first_byte: int) -> str:
    """Returns the error line of a run's log: the line of ev2, else the last line."""
    with open(log, "rb") as file:
        file.seek(max(os.path.getsize(log) - _TAIL_BYTES, first_byte))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    own = [line for line in lines if line.startswith(("ev2: ", "tpu: "))]
    line = (own or lines or [""])[-1]
    return re.sub(r"^(ev2|tpu): ", "", line)[:_REASON_CHARS]

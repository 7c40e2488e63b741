"""Shares a study among any number of workers through one database.

A study has a fixed number of trials, indexed from 0. Each attempt at a trial is one
trial of Optuna, with the index of the study's trial in its attribute "index". Workers
share nothing else, so each may die at any moment: Optuna's heartbeat finds the attempts
of dead workers and retries them.

No trial is lost: an idle worker adds an attempt to a trial without one. No trial runs
twice: only the first attempt that has not failed counts, and later attempts never
start.
"""

import contextlib
import dataclasses
import json
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from ev2 import errors
from ev2.sweeps import storage

# States of a trial. The first three are final.
DONE, PRUNED, FAILED = ENDED = "done", "pruned", "failed"
RUNNING, WAITING = "running", "waiting"
# Values of an attempt's attribute "end" that leave its trial open.
DIED = "died"  # its run was killed: retried, up to `retries` times
STOPPED = "stopped"  # its worker had to stop: retried without limit
REPEATED = "repeated"  # another trial has the same parameters: drawn again

_LIVE = {TrialState.WAITING: WAITING, TrialState.RUNNING: RUNNING}
_DEFINITION_S = 10.0  # for the worker that creates a study to write its definition
_SHOWN_KEYS = 3


class NothingWaiting(Exception):
    """No trial of the study waits for a worker."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySpec:
    """The definition of a study.

    Attributes:
        definition: plain values; a study name has one definition.
        params: fixed parameters of each trial; Optuna suggests missing ones.
        score: name of the score.
        direction: "maximize" or "minimize".
        make_sampler: returns the sampler of a trial, given its index.
        pruner: ends attempts early.
        retries: number of retries of a trial whose run or worker was killed.
        heartbeat_s: whole seconds between two heartbeats of a running attempt.
        grace_s: whole seconds without a heartbeat after which a worker counts as dead.
    """

    definition: Mapping[str, Any]
    params: Sequence[Mapping[str, Any]]
    score: str
    direction: Literal["maximize", "minimize"]
    make_sampler: Callable[[int], optuna.samplers.BaseSampler]
    pruner: optuna.pruners.BasePruner
    retries: int
    heartbeat_s: int = 20
    grace_s: int = 120


@dataclasses.dataclass(frozen=True)
class TrialOutcome:
    """The state of a trial: "done", "pruned", "failed", "running" or "waiting".

    Attributes:
        attempt: the attempt that determines the state; None without attempts.
        tries: number of attempts.
    """

    index: int
    state: str
    attempt: FrozenTrial | None
    tries: int

    @property
    def notes(self) -> Mapping[str, Any]:
        """Attributes of the attempt."""
        return self.attempt.user_attrs if self.attempt else {}

    @property
    def reason(self) -> str:
        """Reason of a failure or of pruning; "" before the end."""
        if self.state == FAILED and not self.notes.get("end"):
            return f"its worker on {self.notes.get('host', 'unknown host')} died"
        return self.notes.get("reason", "") if self.state in ENDED else ""


class SharedStudy(optuna.Study):
    """One worker's view of the study."""

    def __init__(self, url: str, name: str, spec: StudySpec, *, create: bool = True):
        """Opens the study, or creates it with all its trials.

        Raises:
            InputError: the storage cannot be reached, or has this study with another
                definition, or lacks it and `create` is False.
        """
        # Optuna warns at every use that its heartbeat is experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.spec = spec
        self._retry_dead = RetryHeartbeatStaleTrialCallback(max_retry=spec.retries)
        self._database = storage.connect(
            url,
            heartbeat_interval=spec.heartbeat_s,
            grace_period=spec.grace_s,
            heartbeat_stale_trial_callback=self._retry_dead,
        )
        try:
            if create:
                options: dict[str, Any] = {"direction": spec.direction}
                optuna.create_study(storage=self._database, study_name=name, **options)
        except optuna.exceptions.DuplicatedStudyError:
            create = False
        if not create:
            _check_definition(self._database, name, spec.definition)
        super().__init__(name, self._database, pruner=spec.pruner)
        self._open_since: dict[int, float] = {}
        if create:
            self.set_user_attr("definition", _plain(spec.definition))
            self.set_metric_names([spec.score])
            for index in range(len(spec.params)):
                self._add(index)

    def ask(self, fixed_distributions: Any = None) -> optuna.Trial:
        """Starts the next waiting attempt; never adds one, unlike Optuna.

        Raises:
            NothingWaiting: no attempt waits.
        """
        del fixed_distributions
        for outcome in self.outcomes():
            attempt = outcome.attempt
            if attempt is None or attempt.state != TrialState.WAITING:
                continue
            trial_id = self._id(attempt)
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                # Optuna finds a dead attempt only if it has a heartbeat.
                self._database.record_heartbeat(trial_id)
                state = TrialState.RUNNING
                if self._database.set_trial_state_values(trial_id, state):
                    self.sampler = self.spec.make_sampler(outcome.index)
                    trial = optuna.Trial(self, trial_id)
                    note(trial, host=socket.gethostname(), end="", reason="")
                    return trial
        raise NothingWaiting

    def is_running(self, trial: optuna.Trial) -> bool:
        """Returns False if another worker has ended the attempt as stale."""
        return self._database.get_trial(self._id(trial)).state == TrialState.RUNNING

    def retry(self, attempt: FrozenTrial) -> None:
        """Adds another attempt if `attempt` has left its trial open."""
        index, end = attempt.user_attrs["index"], attempt.user_attrs["end"]
        if end == DIED:
            self._retry_dead(self, attempt)
        elif end in (STOPPED, REPEATED):
            self._add(index, attempt if end == STOPPED else None)

    def is_finished(self) -> bool:
        """Returns True if all trials have ended; for workers that find nothing waiting.

        Adds an attempt at a trial that has been open for `grace_s` without one, since
        the worker that should have added it has died.
        """
        outcomes, now = self.outcomes(), time.monotonic()
        self._open_since = {
            outcome.index: self._open_since.get(outcome.index, now)
            for outcome in outcomes
            if outcome.state == WAITING and not _is_live(outcome.attempt)
        }
        for index, since in self._open_since.items():
            if now - since > self.spec.grace_s:
                self._add(index, outcomes[index].attempt)
        return all(outcome.state in ENDED for outcome in outcomes)

    def outcomes(self) -> list[TrialOutcome]:
        """Returns the state of every trial, by index."""
        attempts = [[] for _ in self.spec.params]
        for attempt in self.get_trials(deepcopy=False):
            if attempt.user_attrs.get("end") != REPEATED or _is_live(attempt):
                attempts[attempt.user_attrs["index"]].append(attempt)
        return [self._judge(*item) for item in enumerate(attempts)]

    def _judge(self, index: int, attempts: Sequence[FrozenTrial]) -> TrialOutcome:
        counting = [a for a in attempts if _is_live(a) or _has_ended(a)]
        attempt = next(iter(counting or attempts[-1:]), None)
        if attempt is None:
            state = WAITING
        elif _is_live(attempt):
            state = _LIVE[attempt.state]
        elif _has_ended(attempt):
            state = attempt.user_attrs["end"]
        else:
            stopped = attempt.user_attrs.get("end") == STOPPED
            died = len(RetryHeartbeatStaleTrialCallback.retry_history(attempt))
            state = WAITING if stopped or died < self.spec.retries else FAILED
        return TrialOutcome(index, state, attempt, len(attempts))

    def _add(self, index: int, before: FrozenTrial | None = None) -> None:
        """Adds an attempt, with parameters and attributes of an earlier one."""
        if before is None:
            attributes = {"index": index}
            self.enqueue_trial(dict(self.spec.params[index]), attributes)
            return
        kept = ("params", "distributions", "user_attrs", "system_attrs")
        state, copied = TrialState.WAITING, {key: getattr(before, key) for key in kept}
        self.add_trial(optuna.trial.create_trial(state=state, **copied))

    def _id(self, trial: optuna.Trial | FrozenTrial) -> int:
        study_id = self._database.get_study_id_from_name(self.study_name)
        find = self._database.get_trial_id_from_study_id_trial_number
        return find(study_id, trial.number)


def note(trial: optuna.Trial, **notes: Any) -> None:
    """Stores plain values as attributes of an attempt."""
    for key, value in notes.items():
        trial.set_user_attr(key, value)


def _is_live(attempt: FrozenTrial | None) -> bool:
    return attempt is not None and attempt.state in _LIVE


def _has_ended(attempt: FrozenTrial) -> bool:
    """Returns True if the attempt has ended its trial."""
    failed = attempt.state == TrialState.FAIL
    return attempt.user_attrs.get("end") == FAILED if failed else not _is_live(attempt)


def _check_definition(
    database: optuna.storages.RDBStorage, name: str, here: Mapping[str, Any]
) -> None:
    end = time.monotonic() + _DEFINITION_S
    there = None
    while there is None:
        try:
            study_id = database.get_study_id_from_name(name)
        except KeyError:
            raise errors.InputError(f"name: there is no study {name!r}") from None
        there = database.get_study_user_attrs(study_id).get("definition")
        if there is None and time.monotonic() > end:
            raise errors.InputError(
                f"name: {name!r} is a study without a definition; choose another name, "
                "or remove it with `optuna delete-study`"
            )
        time.sleep(0.2 * (there is None))
    refuse_differing(f"name: {name!r}", there, here)


def refuse_differing(
    subject: str,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    choose: str = "another --name",
) -> None:
    """Raises InputError with the first differing keys of two definitions."""
    here = _plain(here)
    differing = [
        f"{key}={here.get(key)!r} (there: {there.get(key)!r})"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]
    if differing:
        more = len(differing) - _SHOWN_KEYS
        shown = ", ".join(differing[:_SHOWN_KEYS]) + f" and {more} more" * (more > 0)
        raise errors.InputError(
            f"{subject} has another definition there; it differs in {shown}; "
            f"choose {choose}"
        )


def _plain(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the definition after a round trip through JSON: tuples become lists."""
    return json.loads(json.dumps(definition))

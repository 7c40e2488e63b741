"""Trials that any number of workers share through one Optuna storage.

A study has a fixed list of points; a point is tried until it has ended. Every try is a
trial of Optuna, and `point` in its attributes says of what. All that workers know of
each other is in the storage, so one may die at any moment: a running trial says now and
then that it lives, and one that has stopped saying so is tried again by another.

Optuna's own heartbeat is in databases alone; this one is also in a journal and behind
the gRPC proxy, and compares no clocks.

No point is lost: whoever finds nothing to do adds the points that nobody has. None is
doubled: storages number trials in the order of their creation, and of two trials of a
point the later one gives way.
"""

import contextlib
import dataclasses
import functools
import random
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import optuna

from ev2.sweeps import storage as places

State = optuna.trial.TrialState
LIVE = (State.WAITING, State.RUNNING)
SCORED = (State.COMPLETE, State.PRUNED)
# How a trial ended, in its attribute "end".
DONE, PRUNED = "done", "pruned"
FAILED = "failed"  # it would fail again: not tried again
DIED = "died"  # killed, or its worker was: tried again, up to `retries` times
STOPPED = "stopped"  # its worker was told to stop: tried again
DOUBLED = "doubled"  # another trial of the same point was there before it
REPEATED = "repeated"  # drew what another trial has: its point is drawn anew
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_PATIENCE_S = 600.0  # for a storage that was there before
_TRIES = 8  # to take a trial before the list of them is read anew


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study is.

    Attributes:
      definition: plain values; a study of one name has one definition.
      points: parameters of each point that are fixed; what is not, Optuna suggests.
      score: what the score is called.
      direction: "maximize" or "minimize".
      sampler: of a point's number, what suggests.
      pruner: what ends trials early.
      retries: of a point whose trial or worker died.
      grace_s: seconds without a sign of life after which a running trial is dead.
    """

    definition: Mapping[str, Any]
    points: Sequence[Mapping[str, Any]]
    score: str
    direction: Literal["maximize", "minimize"]
    sampler: Callable[[int], optuna.samplers.BaseSampler]
    pruner: optuna.pruners.BasePruner
    retries: int
    grace_s: float


class UnreachableError(RuntimeError):
    """A storage that was there before has not answered for ten minutes."""


def _patient(method):
    """Calls again while the storage does not answer; all methods may be repeated."""

    @functools.wraps(method)
    def patient(*args, **kwargs):
        wait_s, end = _FIRST_WAIT_S, time.monotonic() + _PATIENCE_S
        while True:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                if not is_trouble(error):
                    raise
                if time.monotonic() + wait_s > end:
                    raise UnreachableError(
                        f"storage: no answer for {_PATIENCE_S:g} s"
                    ) from error
            time.sleep(wait_s * random.uniform(0.5, 1))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    return patient


def is_trouble(error: BaseException) -> bool:
    """Whether it is the storage that does not answer."""
    rooms = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    internal = isinstance(error, optuna.exceptions.StorageInternalError)
    return internal or not rooms.isdisjoint({"grpc", "sqlalchemy", "psycopg"})


class Trials:
    """The trials of one study, as one worker sees them."""

    def __init__(self, storage: optuna.storages.BaseStorage, name: str, plan: Plan):
        """Opens the study, or creates it and its trials.

        Raises:
          InputError: there is a study of this name with another definition.
        """
        self._storage, self._plan = storage, plan
        self.points = len(plan.points)  # how many there are
        self.study, created = _open(storage, name, plan)
        self._study_id = storage.get_study_id_from_name(name)
        self._candidates: list[int] = []
        self._looks: dict[int, tuple[Any, float]] = {}  # number: beat, seconds since
        self._looked = self._changed = time.monotonic()
        self._count = 0
        if created:
            for point in range(len(plan.points)):
                self._add(point, plan.points[point], tries=0)

    @_patient
    def claim(self, node: str = "") -> optuna.Trial | None:
        """Takes a waiting trial, rather one that was on `node`; None: there is none."""
        tries = 0
        while True:
            if not self._candidates or tries == _TRIES:
                self._candidates, tries = self._find_candidates(node), 0
            if not self._candidates:
                return None
            number = self._candidates.pop(0)
            if self._set_state(number, State.RUNNING):
                break
            tries += 1
        trial_id = self._id(number)
        attributes = self._storage.get_trial(trial_id).user_attrs
        self.study.sampler = self._plan.sampler(attributes["point"])
        trial = optuna.Trial(self.study, trial_id)
        trial.set_user_attr("host", socket.gethostname())
        return trial

    @_patient
    def patiently(self, call: Callable[[], Any]) -> Any:
        """Returns what `call` does, which may be called again and again."""
        return call()

    @_patient
    def note(self, trial: optuna.Trial, notes: Mapping[str, Any]) -> None:
        """Keeps plain values with a trial of ours, unless it has ended."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            for key, value in notes.items():
                trial.set_user_attr(key, value)

    def _find_candidates(self, node: str) -> list[int]:
        """Numbers of waiting trials; those that give way are ended."""
        first: dict[int, int] = {}  # number of the trial that holds a point
        waiting, ours, running = [], [], 0
        for trial in self.study.get_trials(deepcopy=False):
            point = trial.user_attrs.get("point")
            if point is None or trial.state not in LIVE + SCORED:
                continue
            if first.setdefault(point, trial.number) == trial.number:
                running += trial.state == State.RUNNING
                if trial.state == State.WAITING:
                    was_here = bool(node) and trial.user_attrs.get("node") == node
                    (ours if was_here else waiting).append(trial.number)
            elif trial.state == State.WAITING:
                self._end(trial.number, DOUBLED, "another trial had its point")
        # Workers start at different places, or all would want the same trial.
        place = random.randrange(min(running + 1, len(waiting))) if waiting else 0
        return ours + waiting[place:] + waiting[:place]

    @_patient
    def read(self) -> list[optuna.trial.FrozenTrial]:
        """Returns all trials, not to be changed."""
        return self.study.get_trials(deepcopy=False)

    @_patient
    def beat(self, trial: optuna.Trial) -> bool:
        """Says that `trial` lives; False if others hold it for dead, and it is over."""
        try:
            trial.set_user_attr("beat", time.time())
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return True

    @_patient
    def report(self, trial: optuna.Trial, step: int, score: float) -> bool:
        """Notes the score after `step` (1, 2, ...); whether the trial is to end."""
        known = self._storage.get_trial(self._id(trial.number)).intermediate_values
        if step not in known:
            trial.report(score, step)
        return bool(trial.should_prune())

    @_patient
    def finish(
        self,
        trial: optuna.Trial,
        end: str,
        score: float | None = None,
        reason: str = "",
        notes: Mapping[str, Any] | None = None,
    ) -> bool:
        """Ends a trial of ours; False if others had ended it before.

        Args:
          trial: what `claim` gave.
          end: one of the constants above.
          score: with DONE.
          reason: why there is none.
          notes: plain values to keep with the trial.
        """
        try:
            for key, value in {**(notes or {}), "end": end, "reason": reason}.items():
                trial.set_user_attr(key, value)
            if end == DONE:
                self.study.tell(trial, score)
            elif end == PRUNED:
                self.study.tell(trial, state=State.PRUNED)
            else:
                self.study.tell(trial, state=State.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        except ValueError:  # Optuna's, for a trial that has ended meanwhile
            if self._storage.get_trial(self._id(trial.number)).state.is_finished():
                return False
            raise
        if end == REPEATED:
            point = trial.user_attrs["point"]
            self._add(point, self._plan.points[point], tries=0)
        if end in (DIED, STOPPED):
            self._add_again(trial.user_attrs["point"])
        return True

    @_patient
    def look(self) -> bool:
        """Whether all points have ended; else ends dead trials, adds lost points.

        To be called now and then by every worker.
        """
        trials = self.study.get_trials(deepcopy=False)
        tries = group(trials)
        missing = []
        for point in range(len(self._plan.points)):
            own = tries.get(point, [])
            if settled(own, self._plan.retries) is None and not _is_live(own):
                missing.append(point)
        now = time.monotonic()
        if len(trials) != self._count or any(_is_live(own) for own in tries.values()):
            self._count, self._changed = len(trials), now
        elif missing and now - self._changed > self._plan.grace_s:
            for point in missing:  # whoever was to add them is dead
                self._add_again(point)
        self._end_dead(trials, now)
        return all(
            settled(tries.get(point, []), self._plan.retries) is not None
            for point in range(len(self._plan.points))
        )

    def _end_dead(self, trials: Sequence[optuna.trial.FrozenTrial], now: float) -> None:
        """Ends running trials that have not beaten during `grace_s` of our looking.

        Time without our looks does not count: the storage may have been away for all.
        """
        passed = min(now - self._looked, self._plan.grace_s / 4)
        self._looked, before, self._looks = now, self._looks, {}
        for trial in trials:
            if trial.state != State.RUNNING:
                continue
            beat = trial.user_attrs.get("beat")
            seen, seconds = before.get(trial.number, (beat, -passed))
            seconds = seconds + passed if seen == beat else 0.0
            self._looks[trial.number] = beat, seconds
            if seconds > self._plan.grace_s:
                host = trial.user_attrs.get("host", "unknown")
                if self._end(trial.number, DIED, f"its worker on {host} died"):
                    self._add_again(trial.user_attrs["point"])

    def _end(self, number: int, end: str, reason: str) -> bool:
        """Ends a trial of others; whether it was us."""
        trial_id = self._id(number)
        try:
            self._storage.set_trial_user_attr(trial_id, "end", end)
            self._storage.set_trial_user_attr(trial_id, "reason", reason)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return self._set_state(number, State.FAIL)

    def _set_state(self, number: int, state: State) -> bool:
        try:
            return self._storage.set_trial_state_values(self._id(number), state)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _add_again(self, point: int) -> None:
        """Adds a trial like the last one of the point, unless enough have died."""
        tries = group(self.study.get_trials(deepcopy=False)).get(point, [])
        if settled(tries, self._plan.retries) is not None or _is_live(tries):
            return
        last = tries[-1] if tries else None
        notes = last.user_attrs if last else {}
        kept = {key: notes[key] for key in ("folder", "node") if key in notes}
        params = self._plan.points[point]
        if last is not None and "folder" in notes:  # it was begun, and goes on
            # Whoever died while taking them over has noted but some.
            params = {**last.system_attrs.get("fixed_params", {}), **last.params}
        self._add(point, params, tries=len(tries), **kept)

    @_patient
    def _add(
        self, point: int, params: Mapping[str, Any], *, tries: int, **notes
    ) -> None:
        attributes = {"point": point, "try": tries, **notes}
        self.study.enqueue_trial(dict(params), user_attrs=attributes)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(
            self._study_id, number
        )


def group(
    trials: Sequence[optuna.trial.FrozenTrial],
) -> dict[int, list[optuna.trial.FrozenTrial]]:
    """Returns the trials of each point, oldest first, without those that gave way."""
    gone = (DOUBLED, REPEATED)
    points: dict[int, list[optuna.trial.FrozenTrial]] = {}
    for trial in trials:
        if trial.user_attrs.get("end") not in gone and "point" in trial.user_attrs:
            points.setdefault(trial.user_attrs["point"], []).append(trial)
    return points


def settled(
    tries: Sequence[optuna.trial.FrozenTrial], retries: int
) -> optuna.trial.FrozenTrial | None:
    """Returns the trial that is the outcome of a point, None if it has none yet."""
    died = []
    for trial in tries:
        if trial.state in SCORED:
            return trial
        if trial.state == State.FAIL:
            end = trial.user_attrs.get("end", FAILED)
            if end == FAILED:
                return trial
            died += [trial] * (end == DIED)
    return died[-1] if len(died) > retries else None


def _is_live(tries: Sequence[optuna.trial.FrozenTrial]) -> bool:
    return any(trial.state in LIVE for trial in tries)


def _open(
    storage: optuna.storages.BaseStorage, name: str, plan: Plan
) -> tuple[optuna.Study, bool]:
    """Returns the study, and whether we have created it."""
    common: dict[str, Any] = {"study_name": name, "pruner": plan.pruner}
    try:
        study = optuna.create_study(storage=storage, direction=plan.direction, **common)
    except optuna.exceptions.DuplicatedStudyError:
        places.refuse_other(storage, name, plan.definition)
        return optuna.load_study(storage=storage, **common), False
    study.set_user_attr("definition", places.plain(plan.definition))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([plan.score])
    return study, True

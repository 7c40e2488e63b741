"""Searches: proposes, times, trains and rewards candidates with any number of workers.

    WORKDIR/task.json           the search, read by every candidate's process
    WORKDIR/reference.json      cost of the reference network on this machine
    WORKDIR/study.db            the trials, unless they are in another storage
    WORKDIR/trials/0000/        a candidate's run, with cost.json and log beside it
    WORKDIR/search.json ...     the result, see `ev2.nas.results`

After a kill at any moment the same call resumes the search. On another machine, with
the same storage, it is another worker.
"""

import json
import pathlib
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import optuna
from ml_collections import ConfigDict

from ev2 import errors, files
from ev2.nas import config as search_config
from ev2.nas import controllers, proxy, results, reward
from ev2.sweeps import runner, storage, study, workers
from ev2.train import workdir

CANDIDATE = (sys.executable, "-m", "ev2.nas.proxy")  # runs a candidate
POLL_S = 0.5
_NOISY = 0.15  # standard deviation of the reference's steps, over their median
_BEFORE_PRUNING = 5  # ended candidates: a median of fewer is noise
# Exit codes of a candidate that was stopped from outside. SIGKILL counts as a failure:
# the candidate may have used too much memory.
_DEATHS = (runner.PREEMPTED, 128 + signal.SIGTERM)
_DEATHS += (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


def search(
    config: ConfigDict,
    workdir: str,
    *,
    storage: str = "",
    name: str = "search",
    workers: int = 1,
) -> dict[str, Any]:
    """Searches, or resumes a search, until all candidates have ended.

    Args:
        config: see configs/search.py.
        workdir: folder for the candidates of this machine and for the result.
        storage: database that workers share, see `sweeps.storage`; "" for a file in
            `workdir`.
        name: name of the search in the storage.
        workers: number of candidates at a time on this machine.

    Returns:
        The content of `search.json`.

    Raises:
        InputError: the config is bad, the storage cannot be reached, or the folder or
            study has another search; before anything is written.
        PreemptedError: SIGTERM was received; candidates that have ended are kept.
        CheckError: no candidate has a reward.
        StoppedError: the storage or all workers failed.
    """
    if workers < 1:
        raise errors.InputError(f"workers: {workers} is not allowed; give 1 or more")
    if not name:
        raise errors.InputError("name: '' is not allowed; give one, such as 'search'")
    return _search(config, pathlib.Path(workdir), storage, name, workers)


def _search(
    config: ConfigDict, folder: pathlib.Path, url: str, name: str, count: int
) -> dict[str, Any]:
    _set_up()
    identity = {"storage": storage.hide_password(url), "name": name}
    database = url or str(folder / "study.db")
    storage.check(database)
    files.check_writable("workdir", folder)
    spec = search_config.check(config, folder)
    _refuse_other(folder, {**_flatten(spec.document), **identity})
    has_runs = any((folder / "trials").glob("*/"))
    if not url and has_runs and not (folder / "study.db").exists():
        raise errors.InputError(
            f"storage: {str(folder / 'study.db')!r} is gone, while "
            f"{str(folder / 'trials')!r} has runs of its candidates; restore it, or "
            "give another --workdir"
        )
    try:
        shared = study.SharedStudy(database, name, make_study_spec(spec))
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        text = json.dumps({**spec.document, **identity}, indent=1)
        files.write_atomically(folder / "task.json", text.encode())
        print(search_config.format_table(spec), flush=True)
        print(f"logs: {folder / 'trials'}/*.log", flush=True)
        if count > 1:
            _work_together(folder, database, name, count)
        else:
            _work(spec, shared, folder)
        return _finish(spec, shared, folder)
    except storage.FAULTS as error:
        raise errors.StoppedError(f"storage: {storage.explain(error)}") from error


def _set_up() -> None:
    jax.config.update("jax_platforms", "cpu")  # the accelerator is for candidates
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _refuse_other(folder: pathlib.Path, here: dict[str, Any]) -> None:
    """Raises InputError if the folder holds another search, or is damaged."""
    there = workdir.read_json(folder / "task.json")
    if there is not None:
        kept = {key: there.get(key) for key in ("storage", "name")}
        study.refuse_differing(
            f"workdir: {str(folder)!r}",
            {**_flatten(there), **kept},
            here,
            choose="another --workdir",
        )


def _flatten(document: dict[str, Any]) -> dict[str, Any]:
    search = document.get("search")
    return workdir.flatten(search, ".") if isinstance(search, dict) else {}


def make_study_spec(spec: search_config.SearchSpec) -> study.StudySpec:
    """Returns the definition of the study."""
    config = spec.config
    median = optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING)

    def make_sampler(index: int) -> optuna.samplers.BaseSampler:
        return controllers.make_sampler(
            config.controller, spec.space, seed=config.seed, index=index
        )

    return study.StudySpec(
        definition=_flatten(spec.document),
        params=[{}] * config.trials,
        score="reward",
        direction="maximize",
        make_sampler=make_sampler,
        pruner=median if config.prune == "median" else optuna.pruners.NopPruner(),
        retries=config.retries,
    )


def _work(
    spec: search_config.SearchSpec, shared: study.SharedStudy, folder: pathlib.Path
) -> None:
    """Runs candidates here, one at a time, until none is left or a signal arrives."""
    stopping = threading.Event()
    with workers.listening(stopping.set) as received:
        rate = _time_reference(spec, folder, stopping)
        if rate is None or not Candidates(spec, shared, folder, stopping, rate).work():
            _raise_for(received[0])


def _raise_for(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise errors.PreemptedError("stopped; all candidates that have ended are kept")


def _time_reference(
    spec: search_config.SearchSpec, folder: pathlib.Path, stopping: threading.Event
) -> reward.Reward | None:
    """Times the reference once on this machine; None if stopped meanwhile."""
    path = folder / "reference.json"
    if proxy.read_cost(path, spec.reference) is None:
        name = spec.config.reward.reference
        workers.say(f"timing the reference, {name}", "search")
        command = [*CANDIDATE, str(folder / "task.json"), f"--arch={spec.reference}"]
        with tempfile.TemporaryFile() as log:
            output = {"stdout": log, "stderr": log}
            process = workers.start([*command, f"--cost={path}"], **output)
            while process.poll() is None and not stopping.wait(POLL_S):
                pass
            if process.poll() is None:
                workers.stop(process)
                return None
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
        if process.returncode:
            last = lines[-1] if lines else f"exit code {process.returncode}"
            raise errors.StoppedError(f"the reference could not be timed: {last}")
    cost = json.loads(path.read_text())
    if cost["step_spread"] > _NOISY:
        workers.say(
            f"the reference's steps vary by {cost['step_spread']:.0%} (standard "
            "deviation): another program runs here, and step times are unreliable",
            "search",
        )
    return spec.make_reward(cost)


class Candidates(runner.Objective):
    """Proposes a network, times and trains it, and returns its reward."""

    name = "search"
    value_name = "reward"
    failure_value = 0.0

    def __init__(
        self,
        spec: search_config.SearchSpec,
        shared: study.SharedStudy,
        folder: pathlib.Path,
        stopping: threading.Event,
        rate: reward.Reward,
    ):
        runs = (folder / "trials").absolute()

        def command(words, name: str, resumes: bool) -> list[str]:
            del resumes  # a candidate resumes by itself
            task = str(folder / "task.json")
            return [*CANDIDATE, task, *words, f"--workdir={runs / name}"]

        machine = runner.Machine(
            out=folder,
            command=command,
            deaths=_DEATHS,
            refusals=(proxy.REFUSED,),
            look_s=POLL_S,
        )
        metric = spec.config.proxy.eval.metric
        super().__init__(shared, machine, stopping, score=metric, poll_s=POLL_S)
        self.limit_s = 60.0 * spec.config.limit_minutes
        self._space, self._reward = spec.space, rate

    def suggest(self) -> Mapping[str, Any]:
        """Returns the text of a network that no other trial has.

        A trial stores its network before it reads the other trials. If two draw the
        same network at once, at least one sees the other and draws again.
        """
        try:
            text = self._space.encode(controllers.suggest(self.trial, self._space))
        except errors.InputError as error:  # the space has nothing new
            runner.end_early(study.FAILED, str(error))
        study.note(self.trial, arch=text)
        for other in self.study.outcomes():
            is_other = other.index != self.trial.user_attrs["index"]
            if is_other and other.notes.get("arch") == text:
                runner.end_early(study.REPEATED, f"trial {other.index} has its network")
        return {"arch": text}

    def arguments(self) -> list[str]:
        return [f"--arch={self.values['arch']}"]

    def rate(self, score: float) -> float | None:
        cost = proxy.read_cost(self.run / proxy.COST, self.values["arch"])
        if cost is None:
            return None
        return self._reward(score, cost["step_seconds"], cost["params"])

    def notes(self, end: runner.End) -> Mapping[str, Any]:
        if not self.values:
            return {} if end.value is None else {"reward": end.value}
        accuracy = runner.read_score(self.run, self.score)
        if accuracy is None:
            accuracy = (runner.read_scores(self.run, self.score) or [None])[-1]
        notes = proxy.read_cost(self.run / proxy.COST, self.values["arch"]) or {}
        value = end.value
        if end.kind == study.PRUNED and accuracy is not None:
            value = self.rate(accuracy)
        notes |= {} if value is None else {"reward": value}
        return {**notes, "accuracy": accuracy}

    def progress(self) -> str:
        return results.summarize(results.collect(self.study))


def _work_together(folder: pathlib.Path, url: str, name: str, count: int) -> None:
    """Starts a process for each worker and waits for all of them."""
    command = [sys.executable, "-m", "ev2.nas.search", str(folder), url, name]
    codes, received = workers.run_together([command] * count)
    if received:
        _raise_for(received[0])
    if 0 not in codes:
        raise errors.StoppedError(f"all workers ended, with exit codes {codes}")


def _finish(
    spec: search_config.SearchSpec, shared: study.SharedStudy, folder: pathlib.Path
) -> dict[str, Any]:
    rows = results.collect(shared)
    reference = workdir.read_json(folder / "reference.json") or {}
    lines = results.write(
        folder,
        rows,
        space=spec.space,
        reference={"name": spec.config.reward.reference, **reference},
        make_config=lambda candidate: proxy.apply(
            spec.config.full, spec.space.encode(candidate)
        ),
        count=spec.config.keep_best,
    )
    print(results.format_table(rows, space=spec.space))
    print("\n".join(lines))
    if not any(row["state"] == study.DONE for row in rows):
        raise errors.CheckError("no candidate has a reward; see the reasons above")
    return json.loads((folder / "search.json").read_text())


def main(argv: list[str]) -> int:
    """Runs a worker, given folder, storage and name; returns its exit code."""
    folder, url, name = argv
    _set_up()
    document = json.loads((pathlib.Path(folder) / "task.json").read_text())
    spec = search_config.restore(document)
    try:
        shared = study.SharedStudy(url, name, make_study_spec(spec))
        _work(spec, shared, pathlib.Path(folder))
    except (errors.PreemptedError, KeyboardInterrupt):
        return workers.SIGNALS[signal.SIGTERM]
    except (errors.InputError, errors.StoppedError, *storage.FAULTS) as error:
        workers.say(storage.explain(error), "search")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

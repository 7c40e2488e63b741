"""The search: candidates proposed, timed, trained, rewarded, by any number of workers.

    WORKDIR/task.json           the search, as every candidate's process reads it
    WORKDIR/reference.json      what the reference network costs on this machine
    WORKDIR/journal.log         the trials, unless they are in another storage
    WORKDIR/trials/0000/        a candidate's run, with cost.json and log beside it
    WORKDIR/search.json ...     what came of it; see `outcome`

Killed at any moment, the same call goes on; the same call elsewhere, with one storage,
is another worker.
"""

import functools
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import optuna
from ml_collections import ConfigDict

from ev2 import errors, files
from ev2.nas import config as asking
from ev2.nas import controllers, proxy, reward, rows, scale_up
from ev2.nas import results as outcome
from ev2.sweeps import runner as trial
from ev2.sweeps import storage as places
from ev2.sweeps import study as tries
from ev2.sweeps import trial_files
from ev2.sweeps import workers as worker_processes
from ev2.train import workdir as run_folder

_TAKEN = (*tries.LIVE, *tries.SCORED)
_POLL_S, _BEAT_S, _GRACE_S = 0.5, 20.0, 120.0
_NOISY = 0.15  # standard deviation of the reference's steps, of their median
_BEFORE_PRUNING = 5  # candidates that have ended: a median of fewer says little
# Exit codes of a candidate that was told to stop, by whoever; SIGKILL, as of one that
# takes too much memory, is its own fault.
_STOPPED = (trial.PREEMPTED, 128 + signal.SIGTERM)
_STOPPED += (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


def search(
    config: ConfigDict,
    workdir: str,
    *,
    storage: str = "",
    name: str = "search",
    workers: int = 1,
) -> dict[str, Any]:
    """Searches, or goes on, until all candidates have ended.

    Args:
        config: see configs/search.py.
        workdir: folder for the candidates of this machine and for what is found.
        storage: where workers meet, see `sweeps.storage`; "" for a file in `workdir`.
        name: of the search in the storage.
        workers: candidates at a time, here.

    Returns:
        The content of `search.json`.

    Raises:
        InputError: the config cannot be searched, the storage not be reached, or there
            is another search; before anything is written.
        PreemptedError: SIGTERM came; what was done is kept.
        CheckError: no candidate came to a reward.
    """
    if workers < 1:
        raise errors.InputError(f"workers: {workers} is not allowed; give 1 or more")
    if not name:
        raise errors.InputError("name: '' is not allowed; give one, such as 'search'")
    _set_up()
    folder = pathlib.Path(workdir)
    url = storage or str(folder / "journal.log")
    places.check(url)
    files.check_writable("workdir", folder)
    asked = asking.decide(config, folder)
    # The journal in the folder is known by the folder, wherever that is called from.
    where = {"storage": places.hidden(storage), "name": name}
    _refuse_other(folder, {**_flatten(asked.task), **where})
    _refuse_lost_journal(folder, url)
    try:
        trials = tries.Trials(places.connect(url), name, _plan(asked))
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        task = json.dumps({**asked.task, **where}, indent=1)
        files.write_atomically(folder / "task.json", task.encode())
        print(asking.format_table(asked), flush=True)
        print(f"logs: {folder / 'trials'}/*.log", flush=True)
        if workers > 1:
            _work_together(folder, url, name, workers)
        else:
            _work(asked, trials, folder)
        return _finish(asked, trials, folder)
    except tries.UnreachableError as error:
        raise errors.StoppedError(str(error)) from error


def _set_up() -> None:
    jax.config.update("jax_platforms", "cpu")  # the accelerator is the candidates'
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _refuse_other(folder: pathlib.Path, here: dict[str, Any]) -> None:
    """Raises InputError if the folder is of another search, or damaged."""
    there = run_folder.read_json(folder / "task.json")
    if there is None:
        return
    kept = {key: there.get(key) for key in ("storage", "name")}
    places.refuse_differing(
        f"workdir: {str(folder)!r}",
        {**_flatten(there), **kept},
        here,
        choose="another --workdir",
    )


def _refuse_lost_journal(folder: pathlib.Path, url: str) -> None:
    """Raises InputError if there are runs of candidates, but not what they are of."""
    gone = url == str(folder / "journal.log") and not pathlib.Path(url).exists()
    if gone and any((folder / "trials").glob("*/")):
        raise errors.InputError(
            f"storage: {url!r} is gone, while {str(folder / 'trials')!r} has runs of "
            "its candidates; restore it, or give another --workdir"
        )


def _flatten(task: dict[str, Any]) -> dict[str, Any]:
    search = task.get("search")
    return run_folder.flatten(search, ".") if isinstance(search, dict) else {}


def _plan(asked: asking.Asked) -> tries.Plan:
    config = asked.config
    median = optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING)
    return tries.Plan(
        definition=_flatten(asked.task),
        points=[{}] * config.trials,
        score="reward",
        direction="maximize",
        sampler=functools.partial(
            _make_sampler, config.controller, asked.space, config.seed
        ),
        pruner=median if config.prune == "median" else optuna.pruners.NopPruner(),
        retries=config.retries,
        grace_s=_GRACE_S,
    )


def _make_sampler(controller, space, seed, point) -> optuna.samplers.BaseSampler:
    return controllers.make_sampler(controller, space, seed=seed, point=point)


def _work(asked: asking.Asked, trials: tries.Trials, folder: pathlib.Path) -> None:
    """Runs candidates here, one at a time, until none is left.

    Raises:
        PreemptedError, KeyboardInterrupt: a signal came.
    """
    stopping = threading.Event()
    with worker_processes.listening(stopping.set) as came:
        rate = _weigh_reference(asked, folder, stopping)
        if rate is None:
            _raise_for(came[0])
        task = _make_task(asked, trials, rate)
        pace = trial.Pace(poll_s=_POLL_S, beat_s=_BEAT_S)
        finished = trial.work(trials, task, _make_machine(folder), pace, stopping)
    if not finished:
        _raise_for(came[0])


def _raise_for(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise errors.PreemptedError("stopped; all candidates that have ended are kept")


def _weigh_reference(
    asked: asking.Asked, folder: pathlib.Path, stopping: threading.Event
) -> reward.Reward | None:
    """The reward by the reference network, weighed on this machine, once.

    None: the worker was told to stop meanwhile.
    """
    path = folder / "reference.json"
    cost = proxy.read_cost(trial_files.read(path), asked.reference)
    if cost is None:
        name = asked.config.reward.reference
        trial.say(f"timing the reference, {name}", "search")
        command = [sys.executable, "-m", "ev2.nas.proxy", str(folder / "task.json")]
        command += [f"--arch={asked.reference}", f"--cost={path}"]
        with tempfile.TemporaryFile() as log:
            job = subprocess.Popen(
                trial.bound(command),
                env=trial.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours
            )
            while job.poll() is None and not stopping.wait(_POLL_S):
                pass
            if job.poll() is None:
                trial.stop(job, time.sleep)
                return None
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
        if job.returncode:
            last = said[-1] if said else f"exit code {job.returncode}"
            raise errors.StoppedError(f"the reference could not be timed: {last}")
        cost = json.loads(path.read_text())
        if cost["step_spread"] > _NOISY:
            trial.say(
                f"its steps differ by {cost['step_spread']:.0%} (standard deviation): "
                "something else runs here, and step times say little",
                "search",
            )
    return asked.reward(cost)


def _make_machine(folder: pathlib.Path) -> trial.Machine:
    runs = (folder / "trials").absolute()
    start = [sys.executable, "-m", "ev2.nas.proxy", str(folder / "task.json")]

    def command(words, name: str, again: bool) -> list[str]:
        del again  # it goes on by itself
        return [*start, *words, f"--workdir={runs / name}"]

    return trial.Machine(
        out=folder,
        name="",
        command=command,
        read=lambda name, file: trial_files.read(runs / name / file),
        stop=trial.stop,
        deaths=_STOPPED,
        refusals=(proxy.REFUSED,),
        score_s=_POLL_S,
    )


def _make_task(
    asked: asking.Asked, trials: tries.Trials, rate: reward.Reward
) -> trial.Task:
    config = asked.config
    metric = config.proxy.eval.metric

    def suggest(one: optuna.Trial) -> dict[str, Any] | None:
        text = asked.space.encode(controllers.suggest(one, asked.space))
        one.set_user_attr("arch", text)
        return None if _is_taken(trials.read(), one.number, text) else {"arch": text}

    def read_cost(values: trial.Values, read: trial.Read) -> dict[str, Any] | None:
        return proxy.read_cost(read(proxy.COST), values["arch"])

    def worth(accuracy: float, values: trial.Values, read: trial.Read) -> float | None:
        cost = read_cost(values, read)
        if cost is None:
            return None
        return rate(accuracy, cost["step_seconds"], cost["params"])

    def notes(end: trial.End, values: trial.Values, read: trial.Read) -> dict[str, Any]:
        scores = trial_files.read_scores(read("metrics.jsonl"), metric)
        result = trial_files.read_score(read("eval.json"), metric)
        accuracy = scores[-1] if result is None and scores else result
        noted = {**(read_cost(values, read) or {}), "accuracy": accuracy}
        if end.kind == tries.PRUNED and accuracy is not None:
            return {**noted, "reward": worth(accuracy, values, read)}
        return noted if end.score is None else {**noted, "reward": end.score}

    return trial.Task(
        name="search",
        trials=config.trials,
        suggest=suggest,
        words=lambda values: [f"--arch={values['arch']}"],
        score=metric,
        prune=config.prune,
        rate=worth,
        worth="reward",
        standing=lambda: outcome.standing(rows.collect(trials, config.retries)),
        notes=notes,
        worst=0.0,
        limit_s=60.0 * config.limit_minutes,
    )


def _is_taken(
    trials: Sequence[optuna.trial.FrozenTrial], number: int, text: str
) -> bool:
    """Whether another trial than `number` has the network.

    Every trial says what it has before it looks, so of two that draw the same network
    at the same moment one at least sees the other; if both do, both draw anew.
    """
    return any(
        other.number != number
        and other.state in _TAKEN
        and other.user_attrs.get("arch") == text
        for other in trials
    )


def _work_together(folder: pathlib.Path, url: str, name: str, workers: int) -> None:
    """Starts a process for each worker and waits for all of them."""
    command = [sys.executable, "-m", "ev2.nas.search", str(folder), url, name]
    codes, came = worker_processes.run_together([command] * workers)
    if came:
        _raise_for(came[0])
    if 0 not in codes:
        raise errors.StoppedError(f"all workers ended, with exit codes {codes}")


def _finish(
    asked: asking.Asked, trials: tries.Trials, folder: pathlib.Path
) -> dict[str, Any]:
    found = rows.collect(trials, asked.config.retries)
    reference = run_folder.read_json(folder / "reference.json") or {}
    lines = outcome.write(
        folder,
        found,
        space=asked.space,
        reference={"name": asked.config.reward.reference, **reference},
        make_config=lambda candidate: proxy.apply(
            asked.config.full, asked.space.encode(candidate)
        ),
        count=asked.config.keep_best,
    )
    print(outcome.format_table(found, space=asked.space))
    if best := outcome.rank(found)[:1]:
        network = asked.space.to_arch(asked.space.decode(best[0]["arch"]))
        print(f"\n{scale_up.format_growth(network)}\n")
    print("\n".join(lines))
    if not any(row["state"] == tries.DONE for row in found):
        raise errors.CheckError("no candidate came to a reward; see the reasons above")
    return json.loads((folder / "search.json").read_text())


def main(argv: list[str]) -> int:
    """A worker of `_work_together`: FOLDER, storage and name; returns its exit code."""
    folder, url, name = argv
    _set_up()
    task = json.loads((pathlib.Path(folder) / "task.json").read_text())
    asked = asking.restore(task)
    try:
        trials = tries.Trials(places.connect(url), name, _plan(asked))
        _work(asked, trials, pathlib.Path(folder))
    except (errors.PreemptedError, KeyboardInterrupt):
        return worker_processes.SIGNALS[signal.SIGTERM]
    except (errors.InputError, errors.StoppedError, tries.UnreachableError) as error:
        trial.say(str(error), "search")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

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
import threading
from typing import Any

import jax
import optuna
from ml_collections import ConfigDict

from ev2 import arch, errors, files, run_folder, trial, watch
from ev2 import storage as places
from ev2 import trials as tries
from ev2.nas import asked as asking
from ev2.nas import controllers, outcome, proxy, reward

_TAKEN = (*tries.LIVE, *tries.SCORED)
_POLL_S, _BEAT_S, _GRACE_S = 0.5, 20.0, 120.0
# What ends a search, and the exit code of a worker for it.
_SIGNALS = {signal.SIGTERM: 75, signal.SIGINT: 130}


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
        storage: where workers meet, see `ev2.storage`; "" for a file in `workdir`.
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
    jax.config.update("jax_platforms", "cpu")  # the accelerator is the candidates'
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = pathlib.Path(workdir)
    url = storage or str(folder / "journal.log")
    places.check(url)
    asked = asking.check(config, folder)
    _refuse_other(folder, asked)
    trials = tries.Trials(places.connect(url), name, _plan(asked))
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    files.write_atomically(folder / "task.json", asked.task.encode())
    print(asking.format_table(asked), flush=True)
    if workers > 1:
        _work_together(folder, url, name, workers)
    else:
        _work(asked, trials, folder)
    return _finish(asked, trials, folder)


def _refuse_other(folder: pathlib.Path, asked: asking.Asked) -> None:
    path = folder / "task.json"
    if path.exists():
        there = _flatten(json.loads(path.read_text()))
        here = _flatten(json.loads(asked.task))
        places.refuse_differing(f"workdir: {str(folder)!r}", there, here)


def _flatten(task: dict[str, Any]) -> dict[str, Any]:
    return run_folder.flatten(task["search"], ".")


def _plan(asked: asking.Asked) -> tries.Plan:
    config = asked.config
    after = optuna.pruners.MedianPruner(n_startup_trials=5)
    return tries.Plan(
        definition=_flatten(json.loads(asked.task)),
        points=[{}] * config.trials,
        score="reward",
        direction="maximize",
        sampler=functools.partial(
            _make_sampler, config.controller, asked.space, config.seed
        ),
        pruner=after if config.prune == "median" else optuna.pruners.NopPruner(),
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
    stopping, came = threading.Event(), []

    def note(number: int, frame: Any) -> None:
        del frame
        came.append(number)
        stopping.set()

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        reference = _weigh_reference(asked, folder)
        task = _make_task(asked, trials, reference)
        pace = trial.Pace(poll_s=_POLL_S, beat_s=_BEAT_S)
        finished = trial.work(trials, task, _make_machine(folder), pace, stopping)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not finished:
        _raise_for(came[0])


def _raise_for(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise errors.PreemptedError("stopped; all candidates that have ended are kept")


def _weigh_reference(asked: asking.Asked, folder: pathlib.Path) -> reward.Reward:
    """The reward by the reference network, weighed on this machine, once."""
    path = folder / "reference.json"
    if not path.exists():
        trial.say(f"timing the reference, {asked.config.reward.reference}", "search")
    command = [sys.executable, "-m", "ev2.nas.proxy", str(folder / "task.json")]
    command += [f"--arch={asked.reference}", f"--cost={path}"]
    ran = subprocess.run(
        trial.bound(command), env=trial.environment(), capture_output=True, text=True
    )
    if ran.returncode:
        said = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
        raise errors.StoppedError(f"the reference could not be timed: {said[-1]}")
    return asked.reward(json.loads(path.read_text()))


def _make_machine(folder: pathlib.Path) -> trial.Machine:
    runs = (folder / "trials").absolute()
    start = [sys.executable, "-m", "ev2.nas.proxy", str(folder / "task.json")]

    def command(words, name: str, again: bool) -> list[str]:
        del again  # it goes on by itself
        return [*start, *words, f"--workdir={runs / name}"]

    def read(name: str, file: str) -> str | None:
        path = runs / name / file
        return path.read_text() if path.exists() else None

    return trial.Machine(
        out=folder,
        name="",
        command=command,
        read=read,
        stop=trial.stop,
        deaths=(trial.PREEMPTED,),  # what a signal has killed would die again
        score_s=_POLL_S,
    )


def _make_task(
    asked: asking.Asked, trials: tries.Trials, rate: reward.Reward
) -> trial.Task:
    config = asked.config

    def suggest(one: optuna.Trial) -> dict[str, Any] | None:
        text = asked.space.encode(controllers.suggest(one, asked.space))
        one.set_user_attr("arch", text)
        return None if _is_taken(trials.study, one.number, text) else {"arch": text}

    def worth(accuracy: float, read: trial.Read) -> float:
        cost = json.loads(read(proxy.COST) or "")
        return rate(accuracy, cost["step_seconds"], cost["params"])

    def notes(end: trial.End, read: trial.Read) -> dict[str, Any]:
        cost = json.loads(read(proxy.COST) or "{}")
        scores = trial.read_scores(read("metrics.jsonl"), config.proxy.eval.metric)
        result = json.loads(read("eval.json") or "{}")
        accuracy = watch.score(result, config.proxy.eval.metric) if result else None
        if accuracy is None and scores:
            accuracy = scores[-1]
        noted = {**cost, "accuracy": accuracy}
        if end.kind == tries.PRUNED and accuracy is not None:
            return {**noted, "reward": worth(accuracy, read)}
        return noted if end.score is None else {**noted, "reward": end.score}

    return trial.Task(
        name="search",
        trials=config.trials,
        suggest=suggest,
        words=lambda values: [f"--arch={values['arch']}"],
        score=config.proxy.eval.metric,
        prune=config.prune,
        rate=worth,
        worth="reward",
        standing=lambda: outcome.standing(_collect(trials, config.retries)),
        notes=notes,
        worst=0.0,
        limit_s=60.0 * config.limit_minutes,
    )


def _is_taken(study: optuna.Study, number: int, text: str) -> bool:
    """Whether another trial has the network.

    Every trial says what it has before it looks, so of two that draw the same network
    at the same moment one at least sees the other; if both do, both draw anew.
    """
    return any(
        other.number != number
        and other.state in _TAKEN
        and other.user_attrs.get("arch") == text
        for other in study.get_trials(deepcopy=False)
    )


def _work_together(folder: pathlib.Path, url: str, name: str, workers: int) -> None:
    """Starts a process for each worker and waits for all of them."""
    command = [sys.executable, "-m", "ev2.nas.search", str(folder), url, name]
    running: list[subprocess.Popen] = []
    came: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        del frame
        came.append(number)
        for worker in running:
            worker.terminate()

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        for _ in range(workers):
            running.append(
                subprocess.Popen(
                    trial.bound(command),
                    env=trial.environment(),
                    start_new_session=True,
                )
            )
        codes = [worker.wait() for worker in running]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        _raise_for(came[0])
    if 0 not in codes:
        raise errors.StoppedError(f"all workers ended, with exit codes {codes}")


def _finish(
    asked: asking.Asked, trials: tries.Trials, folder: pathlib.Path
) -> dict[str, Any]:
    rows = _collect(trials, asked.config.retries)
    reference = json.loads((folder / "reference.json").read_text())
    lines = outcome.write(
        folder,
        rows,
        space=asked.space,
        reference={"name": asked.config.reward.reference, **reference},
        make_config=lambda candidate: proxy.apply(
            asked.config.full, asked.space.encode(candidate)
        ),
        count=asked.config.keep_best,
    )
    print(outcome.format_table(rows, space=asked.space))
    if best := outcome.rank(rows)[:1]:
        network = asked.space.to_arch(asked.space.decode(best[0]["arch"]))
        print(f"\n{arch.format_growth(network)}\n")
    print("\n".join(lines))
    if not any(row["state"] == tries.DONE for row in rows):
        raise errors.CheckError("no candidate came to a reward; see the reasons above")
    return json.loads((folder / "search.json").read_text())


def _collect(trials: tries.Trials, retries: int) -> list[dict[str, Any]]:
    """A row for each candidate, as `outcome.write` takes them."""
    grouped = tries.group(trials.study.get_trials(deepcopy=False))
    return [
        _row(point, grouped.get(point, []), retries) for point in range(trials.points)
    ]


def _row(point: int, own: list[Any], retries: int) -> dict[str, Any]:
    settled = tries.settled(own, retries)
    shown = settled or (own[-1] if own else None)
    notes = shown.user_attrs if shown else {}
    state = "waiting"
    if settled is not None:
        end = notes.get("end", tries.FAILED)
        state = end if end in (tries.DONE, tries.PRUNED) else tries.FAILED
        if state == tries.DONE and notes.get("reason"):  # it counts as 0
            state = tries.FAILED
    elif shown is not None and shown.state == tries.State.RUNNING:
        state = "running"
    kept = ("reward", "accuracy", "step_seconds", "params", "seconds", "host", "folder")
    return {
        "trial": point + 1,
        "arch": notes.get("arch", ""),
        "state": state,
        "reason": notes.get("reason", "") if settled else "",
        "tries": len(own),
        **{key: notes.get(key) for key in kept},
    }


def main(argv: list[str]) -> int:
    """A worker of `_work_together`: FOLDER, storage and name; returns its exit code."""
    folder, url, name = argv
    jax.config.update("jax_platforms", "cpu")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    task = json.loads((pathlib.Path(folder) / "task.json").read_text())
    asked = asking.restore(task)
    trials = tries.Trials(places.connect(url), name, _plan(asked))
    try:
        _work(asked, trials, pathlib.Path(folder))
    except (errors.PreemptedError, KeyboardInterrupt):
        return 75
    except (errors.InputError, errors.StoppedError) as error:
        trial.say(str(error), "search")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

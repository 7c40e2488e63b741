"""python -m pytest tests/sweeps/test_study.py

The trials of a shared study: each runs once, whichever workers die and whenever.
"""

import functools
import pathlib
import subprocess
import sys
import time

import optuna
import pytest

from ev2 import errors
from ev2.sweeps import storage, study

optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_spec(trials=4, *, definition=None, **changes) -> study.StudySpec:
    defaults = {
        "definition": definition or {"a": (1, 2)},
        "params": [{"x": float(index)} for index in range(trials)],
        "score": "top1",
        "direction": "maximize",
        "make_sampler": lambda index: optuna.samplers.RandomSampler(seed=index),
        "pruner": optuna.pruners.NopPruner(),
        "retries": 1,
        "heartbeat_s": 1,
        "grace_s": 2,
    }
    return study.StudySpec(**{**defaults, **changes})


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "study.db")


@pytest.fixture
def enter(url):
    """Joins the study as one more worker; each has a connection of its own."""
    return lambda *args, **changes: study.SharedStudy(
        url, "study", make_spec(*args, **changes)
    )


class Ended(Exception):
    pass


def run(worker: study.SharedStudy, end=study.DONE) -> int:
    """Runs the next attempt to an end; returns the index of its trial."""
    indices = []

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 100)
        assert x == trial.user_attrs["index"]
        indices.append(int(x))
        study.note(trial, end=end, reason="why")
        if end == study.DONE:
            return x
        raise Ended

    worker.optimize(
        objective,
        n_trials=1,
        catch=(Ended,),
        callbacks=[lambda _, attempt: worker.retry(attempt)],
    )
    return indices[0]


def wait_for_work(worker: study.SharedStudy, limit_s=30.0) -> None:
    """Looks for stale attempts until one is retried."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        optuna.storages.fail_stale_trials(worker)
        assert not worker.is_finished()
        states = [attempt.state for attempt in worker.get_trials()]
        if optuna.trial.TrialState.WAITING in states:
            return
        time.sleep(0.1)
    raise AssertionError("nothing was retried")


def states(worker: study.SharedStudy) -> list[str]:
    return [outcome.state for outcome in worker.outcomes()]


WORKER = """if True:
    import sys, time
    from ev2.sweeps import study
    from tests.sweeps.test_study import make_spec
    path, count, log = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    worker = study.SharedStudy(path, "study", make_spec(count, grace_s=60))
    def objective(trial):
        with open(log, "a") as file:
            file.write(f"{trial.user_attrs['index']}\\n")
        study.note(trial, end=study.DONE)
        return 1.0
    while not worker.is_finished():
        try:
            worker.optimize(objective)
        except study.NothingWaiting:
            time.sleep(0.1)
"""


def test_eight_processes_on_one_sqlite_file_run_every_trial_once(url, tmp_path, enter):
    command = [sys.executable, "-c", WORKER, url, "60", str(tmp_path / "log")]
    root = pathlib.Path(__file__).parents[2]
    workers = [subprocess.Popen(command, cwd=root) for _ in range(8)]
    assert [worker.wait() for worker in workers] == [0] * 8
    indices = (tmp_path / "log").read_text().split()
    assert sorted(map(int, indices)) == list(range(60))
    assert states(enter(60, grace_s=60)) == [study.DONE] * 60


def test_one_worker_runs_the_trials_in_order(enter):
    worker = enter()
    assert [run(worker) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(study.NothingWaiting):
        run(worker)
    assert worker.is_finished()


def test_a_dead_worker_s_trial_is_retried_with_its_values_and_folder(enter):
    dead, alive = enter(2), enter(2)
    lost = dead.ask()
    lost.suggest_float("x", 0, 100)
    study.note(lost, folder="0000")
    assert run(alive) == 1
    wait_for_work(alive)
    again = alive.ask()
    assert again.user_attrs["index"] == 0 and again.user_attrs["folder"] == "0000"
    assert again.suggest_float("x", 0, 100) == 0.0
    # The dead worker was only slow: its result no longer counts.
    assert not dead.is_running(lost) and alive.is_running(again)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        study.note(lost, end=study.DONE)
    study.note(again, end=study.DONE)
    alive.tell(again, 5.0)
    assert states(alive) == [study.DONE] * 2 and alive.is_finished()
    assert [outcome.tries for outcome in alive.outcomes()] == [2, 1]
    assert alive.best_value == 5.0


def test_a_trial_with_heartbeats_is_left_to_its_worker(enter):
    slow, idle = enter(1), enter(1)

    def objective(trial: optuna.Trial) -> float:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            optuna.storages.fail_stale_trials(idle)
            time.sleep(0.1)
        study.note(trial, end=study.DONE)
        return 1.0

    slow.optimize(objective, n_trials=1)
    assert len(idle.get_trials()) == 1 and states(idle) == [study.DONE]


def test_failures_are_final_and_deaths_after_the_retries(enter):
    worker = enter(2, retries=1)
    assert run(worker, study.FAILED) == 0
    assert [run(worker, study.DIED) for _ in range(2)] == [1, 1]
    assert worker.is_finished() and states(worker) == [study.FAILED] * 2
    assert [outcome.reason for outcome in worker.outcomes()] == ["why"] * 2
    assert [outcome.tries for outcome in worker.outcomes()] == [1, 2]


def test_stopping_does_not_count_as_dying(enter):
    worker = enter(1, retries=0)
    for _ in range(3):
        run(worker, study.STOPPED)
    run(worker)
    assert states(worker) == [study.DONE]


def test_trials_that_nobody_added_are_added_and_run_once(enter, url):
    # Whoever created the study died after the first trial.
    made = optuna.create_study(
        storage=f"sqlite:///{url}", study_name="study", direction="maximize"
    )
    made.set_user_attr("definition", {"a": [1, 2]})
    made.enqueue_trial({"x": 0.0}, user_attrs={"index": 0})
    workers = [enter(3), enter(3)]
    assert run(workers[0]) == 0
    assert not any(worker.is_finished() for worker in workers)
    time.sleep(2.1)
    before = len(made.get_trials())
    stale_views = [functools.partial(worker.is_finished) for worker in workers]
    assert not any(look() for look in stale_views)
    assert len(made.get_trials()) > before
    done = []
    while not workers[1].is_finished():
        done.append(run(workers[1]))
    assert done == [1, 2]


def test_of_two_attempts_at_a_trial_the_later_never_starts(enter):
    worker = enter(2)
    worker.enqueue_trial({"x": 0.0}, user_attrs={"index": 0})
    assert [run(worker), run(worker)] == [0, 1]
    with pytest.raises(study.NothingWaiting):
        run(worker)
    assert worker.is_finished()


def test_other_definitions_and_other_studies_are_refused(enter, url, monkeypatch):
    with pytest.raises(errors.InputError, match="name: there is no study 'study'"):
        study.SharedStudy(url, "study", make_spec(), create=False)
    enter()
    enter()
    with pytest.raises(errors.InputError) as raised:
        enter(definition={"a": (1, 3), "b": 1})
    text = str(raised.value)
    assert "name: 'study' has another definition there; it differs in a=[1, 3]" in text
    assert "(there: [1, 2]), b=1 (there: None); choose another --name" in text


def test_a_file_that_is_not_a_database_is_left_alone(url):
    pathlib.Path(url).write_text('{"op_code": 0}\n')
    with pytest.raises(errors.InputError, match="is not an SQLite database"):
        storage.connect(url)
    assert pathlib.Path(url).read_text() == '{"op_code": 0}\n'


@pytest.mark.parametrize(
    "url, message",
    [
        ("mysql://u:secret@host/db", "'mysql://u:***@host/db' is not supported; give"),
        ("grpc://127.0.0.1:1", "'grpc://127.0.0.1:1' is not supported; give a file"),
        ("postgresql://u:secret@127.0.0.1:1/db", "u:***@127.0.0.1:1/db' cannot be re"),
        ("postgresql://host:port/db", "storage: "),
        ("/proc/study.db", "'/proc' cannot be written"),
        ("/", "'/' is not an SQLite database"),
    ],
)
def test_unusable_storages_are_refused(url, message):
    with pytest.raises(errors.InputError) as raised:
        storage.connect(url)
    assert message in str(raised.value) and "secret" not in str(raised.value)


def test_checking_a_file_creates_nothing(tmp_path):
    storage.check(str(tmp_path / "new/study.db"))
    assert not list(tmp_path.iterdir())

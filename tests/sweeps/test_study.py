"""python -m pytest tests/sweeps/test_study.py

The trials of a study, shared: each point once, whoever dies and whenever.
"""

import pathlib
import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest

from ev2 import errors
from ev2.sweeps import storage
from ev2.sweeps import study as trials

optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_plan(points=4, *, definition=None, retries=1, grace_s=0.2) -> trials.Plan:
    return trials.Plan(
        definition=definition or {"a": (1, 2)},
        points=[{"x": float(point)} for point in range(points)],
        score="top1",
        direction="maximize",
        sampler=lambda point: optuna.samplers.RandomSampler(seed=point),
        pruner=optuna.pruners.NopPruner(),
        retries=retries,
        grace_s=grace_s,
    )


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "journal.log")


@pytest.fixture
def enter(url):
    """Joins the study as one more worker; each has a connection of its own."""
    return lambda *args, **how: trials.Trials(
        storage.connect(url), "study", make_plan(*args, **how)
    )


def run(worker: trials.Trials, end=trials.DONE, **how) -> int:
    """Claims a trial and ends it; returns its point."""
    trial = worker.claim()
    assert trial is not None
    x = trial.suggest_float("x", 0, 100)
    assert x == trial.user_attrs["point"]
    worker.finish(trial, end, x if end == trials.DONE else None, **how)
    return trial.user_attrs["point"]


def look_until(worker: trials.Trials, limit_s=5.0) -> bool:
    """Looks until a trial waits or all have ended; whether they have."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if worker.look():
            return True
        states = [trial.state for trial in worker.study.get_trials()]
        if trials.State.WAITING in states:
            return False
        time.sleep(0.02)
    raise AssertionError("nothing happened")


def outcomes(worker: trials.Trials, retries=1) -> dict[int, str]:
    found = {}
    for point, tries in trials.group(worker.study.get_trials()).items():
        outcome = trials.settled(tries, retries)
        found[point] = outcome.user_attrs["end"] if outcome else "none"
    return found


def test_every_point_once_over_many_workers(enter):
    enter(40)
    done, lock = [], threading.Lock()

    def work():
        worker = enter(40)
        while (trial := worker.claim()) is not None:
            with lock:
                done.append(trial.user_attrs["point"])
            worker.finish(trial, trials.DONE, 1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(40))
    last = enter(40)
    assert last.look() and len(last.study.get_trials()) == 40


def test_one_worker_goes_in_order(enter):
    worker = enter(4)
    assert [run(worker) for _ in range(4)] == [0, 1, 2, 3]
    assert worker.claim() is None and worker.look()


def test_a_dead_worker_s_trial_is_tried_again_with_its_values(enter):
    dead, alive = enter(2), enter(2)
    lost = dead.claim()
    assert lost is not None
    lost.suggest_float("x", 0, 100)
    dead.note(lost, {"folder": "0000"})
    assert run(alive) == 1
    assert not look_until(alive)
    again = alive.claim()
    assert again is not None
    assert again.user_attrs["point"] == 0 and again.user_attrs["try"] == 1
    assert again.user_attrs["folder"] == "0000"
    assert again.suggest_float("x", 0, 100) == 0.0
    # The dead one was only slow: what it says now does not count.
    assert not dead.beat(lost)
    assert not dead.finish(lost, trials.DONE, 9.0)
    assert alive.finish(again, trials.DONE, 5.0)
    assert alive.look() and outcomes(alive) == {0: "done", 1: "done"}
    assert alive.study.best_value == 5.0


def test_a_beating_trial_is_left_alone(enter):
    slow, idle = enter(1), enter(1)
    trial = slow.claim()
    assert trial is not None
    end = time.monotonic() + 0.8
    while time.monotonic() < end:
        assert slow.beat(trial) and not idle.look()
        time.sleep(0.05)
    assert idle.claim() is None
    assert slow.finish(trial, trials.DONE, 1.0) and idle.look()


def test_a_storage_that_was_away_does_not_make_workers_dead(enter):
    slow, idle = enter(1, grace_s=0.4), enter(1, grace_s=0.4)
    trial = slow.claim()
    assert trial is not None
    idle.look()
    time.sleep(1)  # nobody could look or beat
    idle.look()
    assert slow.beat(trial)


@pytest.mark.parametrize("end, tries", [(trials.DIED, 2), (trials.FAILED, 1)])
def test_failures_are_final_and_deaths_after_the_retries(enter, end, tries):
    worker = enter(1, retries=1)
    for _ in range(tries):
        run(worker, end, reason="why")
    assert worker.claim() is None and worker.look()
    assert outcomes(worker) == {0: end}
    assert len(worker.study.get_trials()) == tries


def test_stopping_does_not_count_as_dying(enter):
    worker = enter(1, retries=0)
    for _ in range(3):
        run(worker, trials.STOPPED)
    run(worker)
    assert outcomes(worker, 0) == {0: "done"}


def test_points_that_nobody_added_are_added_once(enter, url):
    # Whoever made the study died after the first trial.
    plan = make_plan(5)
    study = optuna.create_study(
        storage=storage.connect(url), study_name="study", direction="maximize"
    )
    study.set_user_attr("definition", {"a": [1, 2]})
    study.enqueue_trial({"x": 0.0}, user_attrs={"point": 0, "try": 0})
    workers = [trials.Trials(storage.connect(url), "study", plan) for _ in range(3)]
    assert run(workers[0]) == 0
    done = []

    def work(worker):
        while not look_until(worker):
            if (trial := worker.claim()) is not None:
                done.append(trial.user_attrs["point"])
                worker.finish(trial, trials.DONE, 1.0)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [1, 2, 3, 4]
    assert all(worker.look() for worker in workers)


def test_of_two_trials_of_a_point_the_later_gives_way(enter):
    worker = enter(2)
    worker.study.enqueue_trial({"x": 0.0}, user_attrs={"point": 0, "try": 1})
    assert [run(worker), run(worker)] == [0, 1]
    assert worker.claim() is None and worker.look()
    ends = [trial.user_attrs["end"] for trial in worker.study.get_trials()]
    assert ends == ["done", "done", trials.DOUBLED]


def test_scores_on_the_way_prune(url):
    plan = make_plan(6)
    plan = trials.Plan(**{**vars(plan), "pruner": optuna.pruners.MedianPruner(3, 2)})
    worker = trials.Trials(storage.connect(url), "study", plan)
    for point in range(6):
        trial = worker.claim()
        assert trial is not None
        assert not worker.report(trial, 1, float(-point))
        pruned = worker.report(trial, 2, float(-point))
        assert pruned == (point > 2)  # after three trials, and below their median
        assert worker.report(trial, 2, 99.0) == pruned  # said before
        if pruned:
            worker.finish(trial, trials.PRUNED)
        else:
            worker.finish(trial, trials.DONE, -point)
    assert worker.look()
    assert [*outcomes(worker).values()] == ["done"] * 3 + ["pruned"] * 3


def test_other_definitions_and_other_studies_are_refused(enter, url, monkeypatch):
    enter()
    enter()
    with pytest.raises(errors.InputError) as raised:
        enter(definition={"a": (1, 3), "b": 1})
    text = str(raised.value)
    assert "name: 'study' has another definition there; it differs in a=[1, 3]" in text
    assert "(there: [1, 2]), b=1 (there: None); choose another --name" in text
    optuna.create_study(storage=storage.connect(url), study_name="own")
    monkeypatch.setattr(storage, "_DEFINITION_S", 0.1)
    with pytest.raises(errors.InputError, match="'own' is a study that does not say"):
        trials.Trials(storage.connect(url), "own", make_plan())


def test_a_holder_of_the_lock_that_is_killed_does_not_hold_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as in --workdir=runs/search
    holder = (
        "import os, signal; from ev2 import storage;"
        "s = storage.connect('journal.log');"
        "s._backend._lock.acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", holder], check=False)
    assert killed.returncode == -signal.SIGKILL
    started = time.monotonic()
    worker = trials.Trials(storage.connect("journal.log"), "study", make_plan(1))
    assert run(worker) == 0 and time.monotonic() < started + 10


def test_a_first_line_that_was_cut_is_none(url):
    pathlib.Path(url).write_text('{"op_code":0,"worker_')
    assert run(trials.Trials(storage.connect(url), "study", make_plan(1))) == 0


def test_a_line_that_was_cut_is_taken_back(enter, url):
    worker = enter(3)
    assert run(worker) == 0
    whole = pathlib.Path(url).read_bytes()
    for rest in (b'{"op_code":6,"cut', b"\0" * 5000):
        with open(url, "ab") as file:
            file.write(rest)
        with pytest.raises(KeyError):  # readers wait for its end
            storage.connect(url).get_study_id_from_name("another")
        assert pathlib.Path(url).read_bytes().startswith(whole)
        run(worker if rest[0] else enter(3))
        whole = pathlib.Path(url).read_bytes()
        assert rest not in whole
    assert outcomes(enter(3)) == {0: "done", 1: "done", 2: "done"}


@pytest.mark.parametrize("text", ["a diary", "a diary\n", "[1]\n", "{}\n", '{"op"}'])
def test_a_file_that_is_no_journal_is_left_alone(url, text):
    pathlib.Path(url).write_text(text)
    with pytest.raises(errors.InputError, match="is no journal of trials"):
        storage.connect(url)
    assert pathlib.Path(url).read_text() == text


def test_a_storage_that_does_not_answer_is_asked_again(enter, monkeypatch):
    worker = enter(1)
    monkeypatch.setattr(trials, "_FIRST_WAIT_S", 0.01)
    broken = iter([True, True, False])

    def call():
        if next(broken):
            raise optuna.exceptions.StorageInternalError("away")
        return "back"

    assert worker.patiently(call) == "back"
    monkeypatch.setattr(trials, "_PATIENCE_S", 0.02)
    broken = iter([True] * 99)
    with pytest.raises(trials.UnreachableError):
        worker.patiently(call)
    with pytest.raises(ZeroDivisionError):
        worker.patiently(lambda: 1 / 0)


@pytest.mark.parametrize(
    "url, message",
    [
        ("mysql://u:secret@host/db", "'mysql://u:***@host/db' is not known; give a"),
        ("postgresql://u:secret@127.0.0.1:1/db", "u:***@127.0.0.1:1/db' cannot be re"),
        ("postgresql://host:port/db", "Port could not be cast"),
        ("grpc://127.0.0.1:1", "'grpc://127.0.0.1:1' cannot be reached (Connection"),
        ("/proc/journal.log", "'/proc/journal.log' cannot be written"),
        ("/", "'/' cannot be written (it is a folder)"),
    ],
)
def test_storages_that_cannot_be(url, message):
    with pytest.raises(errors.InputError) as raised:
        storage.check(url)
    assert message in str(raised.value) and "secret" not in str(raised.value)
    if url.startswith("postgresql"):
        with pytest.raises(errors.InputError):
            storage.connect(url)


def test_checking_a_file_makes_none(tmp_path):
    storage.check(str(tmp_path / "new/journal.log"))
    assert not list(tmp_path.iterdir())

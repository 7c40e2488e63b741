"""python -m pytest -m slow tests/launch/test_sweep_postgres.py -s

Sweeps on a PostgreSQL server: complete runs with a worker killed, 64 workers, a
restarted database. With -s they print their figures.
"""

import collections
import csv
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import optuna
import psycopg
import pytest

from tests.helpers import postgres

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow
# Its score is the learning rate.
TRIAL = """\
for word in "$@"; do case "$word" in
  --workdir=*) run=${word#*=} ;;
  --config.optimizer.lr=*) rate=${word#*=} ;;
esac; done
mkdir -p $run
echo $$ >> $run/starts
HANG
sleep SECONDS
echo "{\\"ema\\": {\\"top1\\": $rate}}" > $run/eval.json
"""
# Most of a trial's time are imports and compiling.
SHORT = (
    *("--config.epochs=0.0", "--config.steps=120", "--config.batch_size=16"),
    *("--config.progressive.schedule=fixed", "--config.checkpoint.every_steps=20"),
    *("--config.progressive.image_size=(16, 16)", "--config.eval.image_size=16"),
    *("--config.optimizer.warmup_epochs=0.0", "--config.ema.decay=0.9"),
)


@pytest.fixture(scope="module")
def server():
    with postgres.serve() as server:
        yield server


class Sweep:
    """A random sweep of learning rates over trials of a few lines of shell."""

    def __init__(self, folder, url, name, trials, *, seconds=0.0, hang=""):
        self.folder, self.url, self.name = folder, url, name
        keys = {"optimizer.lr": {"low": 0.01, "high": 0.1}}
        sweep = {"method": "random", "trials": trials, "keys": keys}
        (folder / "some.py").write_text(f"def get_sweep():\n    return {sweep!r}\n")
        script = TRIAL.replace("SECONDS", str(seconds)).replace("HANG", hang)
        (folder / "trial.sh").write_text(script)
        self.shell = f"--command=sh {folder}/trial.sh"

    def start(self, *words: str) -> subprocess.Popen:
        command = [
            *(sys.executable, str(ROOT / "launch/sweep.py")),
            *(f"--config={ROOT}/configs/demo.py", f"--sweep={self.folder}/some.py"),
            *(f"--out={self.folder}/out", f"--name={self.name}"),
            *(f"--storage={self.url}", *words),
        ]
        env = dict(os.environ)
        env.pop("XLA_FLAGS", None)  # one device, as a person would run it
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, text=True, stdout=pipe, stderr=pipe)

    def starts(self) -> collections.Counter:
        """The number of trials that were started once, twice ..."""
        paths = self.folder.glob("out/trials/*/starts")
        return collections.Counter(len(p.read_text().splitlines()) for p in paths)

    def states(self) -> dict[str, int]:
        """The number of attempts in each state of Optuna."""
        url = self.url.replace("postgresql://", "postgresql+psycopg://")
        storage = optuna.storages.RDBStorage(url)
        study = optuna.load_study(study_name=self.name, storage=storage)
        counts = collections.Counter(trial.state.name for trial in study.get_trials())
        storage.engine.dispose()
        return counts

    def rows(self) -> list[dict[str, str]]:
        text = (self.folder / "out/results.csv").read_text()
        return [*csv.DictReader(text.splitlines())]


def read_until(process: subprocess.Popen, pattern: str) -> str:
    """The first group of the first line of stderr that matches; reads on after it."""
    assert process.stderr is not None
    match = None
    for line in process.stderr:
        if match := re.search(pattern, line):
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    assert match is not None
    return match[1]


def test_a_killed_worker_s_run_resumes_from_its_checkpoint(server, tmp_path):
    sweep = Sweep(tmp_path, server.url, "runs", 12)
    words = [*SHORT, "--beat_s=2", "--grace_s=20"]
    started = time.monotonic()
    doomed = sweep.start(*words)
    index = int(read_until(doomed, r"trial (\d+) of 12: optimizer"))
    others = [sweep.start(*words), sweep.start(*words)]
    folder = tmp_path / f"out/trials/{index:04d}"
    while not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        assert doomed.poll() is None and time.monotonic() - started < 600
        time.sleep(0.02)
    doomed.send_signal(signal.SIGKILL)
    outputs = [worker.communicate() for worker in others]
    doomed.communicate()
    assert [worker.returncode for worker in others] == [0, 0], outputs
    assert "12 trials: 12 done" in outputs[0][0]
    print(f"\n12 runs, 3 workers, one killed: {time.monotonic() - started:.0f} s")
    print(outputs[0][0])
    assert sweep.states() == {"COMPLETE": 12, "FAIL": 1}
    rows = sweep.rows()
    assert sorted(int(row["trial"]) for row in rows) == list(range(12))
    retried = {row["trial"]: row["tries"] for row in rows if row["tries"] != "1"}
    assert retried == {str(index): "2"}
    log = pathlib.Path(f"{folder}.log").read_text()
    assert re.search(r"resum\w+ .*step \d+", log.replace(",", ""))
    assert all(0 < float(row["ema.top1"]) <= 1 for row in rows)


def test_64_workers_one_killed_lose_no_trial_and_double_none(server, tmp_path):
    # One trial, and one alone, hangs in its first attempt, until its worker is killed.
    hang = f"mkdir {tmp_path}/hung 2> /dev/null && echo $PPID > {tmp_path}/pid "
    hang += "&& exec sleep 600"
    sweep = Sweep(tmp_path, server.url, "load", 320, hang=hang)
    started = time.monotonic()
    workers = sweep.start(sweep.shell, "--workers=64", "--beat_s=5", "--grace_s=60")
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().strip()):
        assert workers.poll() is None
        time.sleep(0.1)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    out, err = workers.communicate()
    seconds = time.monotonic() - started
    assert workers.returncode == 0, err[-2000:]
    assert "320 trials: 320 done" in out
    assert sweep.starts() == {1: 319, 2: 1}
    assert sweep.states() == {"COMPLETE": 320, "FAIL": 1}
    print(
        f"\n320 trials, 64 workers, one killed: {seconds:.0f} s in all; PostgreSQL "
        f"{server.version}, Optuna {optuna.__version__}, psycopg {psycopg.__version__}"
    )


def test_workers_wait_for_a_database_that_is_restarted(server, tmp_path):
    sweep = Sweep(tmp_path, server.url, "restart", 40, seconds=0.3)
    words = (sweep.shell, "--workers=3", "--beat_s=2", "--grace_s=20")
    workers = sweep.start(*words)
    while sum(sweep.starts().values()) < 8:
        assert workers.poll() is None
        time.sleep(0.05)
    server.stop()
    time.sleep(3)
    server.start()
    out, err = workers.communicate()
    assert workers.returncode == 0, err
    assert "40 trials: 40 done" in out
    # A transaction that the restart has cut off may cost an attempt, never a trial.
    assert sweep.states()["COMPLETE"] == 40


def test_workers_that_all_start_at_once(server, tmp_path):
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("create database fresh")
    url = f"{server.url.removesuffix('postgres')}fresh"
    sweep = Sweep(tmp_path, url, "fresh", 24)
    workers = [sweep.start(sweep.shell, "--noresults") for _ in range(8)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 8, errors
    assert sweep.starts() == {1: 24}
    assert sweep.states() == {"COMPLETE": 24}


def test_a_missing_database_is_one_line(server, tmp_path):
    url = server.url.removesuffix("postgres").replace("@", ":secret@") + "nowhere"
    sweep = Sweep(tmp_path, url, "missing", 1)
    worker = sweep.start(sweep.shell)
    out, err = worker.communicate()
    assert worker.returncode == 2 and not out
    assert len(err.splitlines()) == 1 and "secret" not in err
    assert 'database "nowhere" does not exist' in err
    assert not (tmp_path / "out").exists()

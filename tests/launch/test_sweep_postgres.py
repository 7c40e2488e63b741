"""python -m pytest -m slow tests/launch/test_sweep_postgres.py -s

Sweeps on a real PostgreSQL: whole jobs with a worker killed, 64 workers, a restarted
database, the gRPC proxy. With -s they print their figures.
"""

import collections
import csv
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import optuna
import psycopg
import pytest

from ev2.sweeps import storage
from ev2.sweeps import study as tries
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


def write_sweep(folder: pathlib.Path, trials: int, seconds: float = 0.0) -> list[str]:
    """A random sweep of learning rates; returns the command that runs it."""
    keys = {"optimizer.lr": {"low": 0.01, "high": 0.1}}
    said = {"method": "random", "trials": trials, "keys": keys}
    (folder / "some.py").write_text(f"def get_sweep():\n    return {said!r}\n")
    script = TRIAL.replace("SECONDS", str(seconds))
    (folder / "trial.sh").write_text(script)
    return [
        *(sys.executable, str(ROOT / "launch/sweep.py")),
        f"--config={ROOT}/configs/demo.py",
        f"--sweep={folder}/some.py",
        f"--out={folder}/out",
    ]


def trivial(folder: pathlib.Path) -> str:
    return f"--command=sh {folder}/trial.sh"


def starts(folder: pathlib.Path) -> collections.Counter:
    """How many trials were started how often."""
    paths = folder.glob("out/trials/*/starts")
    return collections.Counter(len(path.read_text().splitlines()) for path in paths)


def environment() -> dict[str, str]:
    env = dict(os.environ)
    env.pop("XLA_FLAGS", None)  # one device, as a person would run it
    return env


def states(url: str, name: str) -> dict[str, int]:
    kept = storage.connect(url)
    assert isinstance(kept, optuna.storages.RDBStorage)
    study = optuna.load_study(study_name=name, storage=kept)
    counts = collections.Counter(trial.state.name for trial in study.get_trials())
    kept.engine.dispose()
    return counts


def read_until(process: subprocess.Popen, pattern: str) -> str:
    """The first group of the first line of stderr that matches; reads on after it."""
    assert process.stderr is not None
    found = None
    for line in process.stderr:
        if found := re.search(pattern, line):
            break
    threading.Thread(target=process.stderr.read, daemon=True).start()
    assert found is not None
    return found[1]


def test_twelve_jobs_three_workers_one_killed(server, tmp_path):
    command = [
        *write_sweep(tmp_path, 12),
        *SHORT,
        *(f"--storage={server.url}", "--name=jobs", "--beat_s=2", "--grace_s=20"),
    ]
    started = time.monotonic()

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            command,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    doomed = start()
    point = int(read_until(doomed, r"trial (\d+)/12: optimizer")) - 1
    others = [start(), start()]
    folder = tmp_path / f"out/trials/{point:04d}"
    while not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        assert doomed.poll() is None and time.monotonic() - started < 600
        time.sleep(0.02)
    doomed.send_signal(signal.SIGKILL)
    results = [worker.communicate() for worker in others]
    doomed.communicate()
    assert [worker.returncode for worker in others] == [0, 0], results
    assert "12 trials: 12 done" in results[0][0]
    print(f"\n12 jobs, 3 workers, one killed: {time.monotonic() - started:.0f} s")
    print(results[0][0])

    assert states(server.url, "jobs") == {"COMPLETE": 12, "FAIL": 1}
    rows = [*csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines())]
    assert sorted(int(row["trial"]) for row in rows) == list(range(1, 13))
    again = {row["trial"]: row["tries"] for row in rows if row["tries"] != "1"}
    assert again == {str(point + 1): "2"}
    log = pathlib.Path(f"{folder}.log").read_text()
    assert re.search(r"resuming after step \d+", log.replace(",", ""))
    assert all(0 < float(row["ema.top1"]) <= 1 for row in rows)


def test_load_of_64_workers(server, tmp_path):
    command = [
        *write_sweep(tmp_path, 320),
        trivial(tmp_path),
        *(f"--storage={server.url}", "--name=load", "--workers=64"),
    ]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-2000:]
    assert "320 trials: 320 done" in done.stdout
    assert starts(tmp_path) == {1: 320}
    assert states(server.url, "load") == {"COMPLETE": 320}
    print(
        f"\n320 trials, 64 workers: {seconds:.0f} s in all; PostgreSQL "
        f"{server.version}, Optuna {optuna.__version__}, psycopg {psycopg.__version__}"
    )


def test_a_database_that_is_restarted(server, tmp_path):
    command = [
        *write_sweep(tmp_path, 40, seconds=0.3),
        trivial(tmp_path),
        *(f"--storage={server.url}", "--name=restart", "--workers=3"),
    ]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while sum(starts(tmp_path).values()) < 8:
        assert worker.poll() is None
        time.sleep(0.05)
    server.stop()
    time.sleep(3)
    server.start()
    out, err = worker.communicate()
    assert worker.returncode == 0, err
    assert b"40 trials: 40 done" in out
    assert starts(tmp_path) == {1: 40}


def test_workers_behind_the_proxy(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(ROOT / "launch/sweep.py")
    proxy = subprocess.Popen(
        [sys.executable, script, f"--serve={port}", f"--storage={server.url}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    read_until(proxy, "(serving)")
    command = [
        *write_sweep(tmp_path, 30, seconds=0.2),
        trivial(tmp_path),
        *(f"--storage=grpc://127.0.0.1:{port}", "--name=proxy"),
        *("--beat_s=0.5", "--grace_s=4"),
    ]
    try:
        time.sleep(1)
        doomed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        read_until(doomed, r"(trial \d+/30: optimizer)")
        doomed.kill()
        doomed.communicate()
        done = subprocess.run([*command, "--workers=3"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "30 trials: 30 done" in done.stdout
        counts = states(server.url, "proxy")
        assert counts["COMPLETE"] == 30 and counts["FAIL"] <= 1
        assert starts(tmp_path)[2] <= 1
    finally:
        proxy.terminate()
        proxy.communicate()


def test_workers_that_all_begin_at_once(server, tmp_path):
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("create database fresh")
    url = f"{server.url.removesuffix('postgres')}fresh"
    command = [*write_sweep(tmp_path, 24), trivial(tmp_path), f"--storage={url}"]
    workers = [
        subprocess.Popen([*command, "--noresults"], stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 8, said
    assert starts(tmp_path) == {1: 24}
    assert states(url, "some") == {"COMPLETE": 24}


def test_a_wrong_database_is_one_line(server, tmp_path):
    command = write_sweep(tmp_path, 1)
    url = server.url.removesuffix("postgres").replace("@", ":secret@") + "nowhere"
    done = subprocess.run(
        [*command, trivial(tmp_path), f"--storage={url}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "secret" not in done.stderr
    assert 'database "nowhere" does not exist' in done.stderr
    assert not (tmp_path / "out").exists()
    assert tries.DONE not in done.stdout

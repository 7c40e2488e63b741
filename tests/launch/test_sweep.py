"""python -m pytest tests/launch/test_sweep.py

launch/sweep.py with trials that are a few lines of shell; no training, no cloud.
"""

import collections
import csv
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from ev2.sweeps import runner
from launch import results, space, sweep
from tests.helpers import documented, fake_gcloud

ROOT = pathlib.Path(__file__).parents[2]
GRID = {"optimizer.lr": [0.01, 0.02, 0.04], "progressive.image_size": [(8, 9), (9, 9)]}
PLACE = ("--zone=europe-west4-a", "--project=ours", "--bucket=gs://bucket")
# Its score is the learning rate; what `play` puts before can make it fail.
TRIAL = """\
for word in "$@"; do case "$word" in
  --workdir=*) run=${word#*=} ;;
  --config.optimizer.lr=*) rate=${word#*=} ;;
esac; done
mkdir -p $run
echo "$*" >> $run/calls
PLAY
echo "{\\"ema\\": {\\"top1\\": $rate}}" > $run/eval.json
"""


class Sweeps:
    """Runs launch/sweep.py on sweeps that it writes into `folder`."""

    def __init__(self, folder: pathlib.Path, capfd):
        self.folder, self._capfd = folder, capfd
        self.out = folder / "out"
        self.define(method="grid", keys=GRID)
        self.play("")

    def define(self, **said) -> None:
        text = f"def get_sweep():\n    return {said!r}\n"
        (self.folder / "some.py").write_text(text)

    def play(self, text: str) -> None:
        script = TRIAL.replace("PLAY", text)
        (self.folder / "trial.sh").write_text(f"#!/bin/bash\n{script}")

    def words(self, *more: str) -> list[str]:
        return [
            f"--config={ROOT}/configs/demo.py",
            f"--sweep={self.folder}/some.py",
            f"--out={self.out}",
            f"--command=bash {self.folder}/trial.sh",
            *("--poll_s=0.05", "--beat_s=1", "--grace_s=3"),
            *more,
        ]

    def run(self, *more: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, in this process."""
        self._capfd.readouterr()
        code = sweep.main(self.words(*more))
        return code, *self._capfd.readouterr()

    def start(self, *more: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "launch/sweep.py"), *self.words(*more)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def calls(self) -> dict[str, list[str]]:
        """What each trial was called with, by its folder's name."""
        found = {}
        for path in sorted(self.out.glob("trials/*/calls")):
            found[path.parent.name] = path.read_text().splitlines()
        return found

    def rows(self) -> list[dict[str, str]]:
        return [*csv.DictReader((self.out / "results.csv").read_text().splitlines())]

    def wait_for(self, what, limit_s: float = 60.0) -> None:
        end = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def sweeps(tmp_path, capfd):
    return Sweeps(tmp_path, capfd)


def test_a_grid_over_two_workers(sweeps):
    code, out, err = sweeps.run("--workers=2", "--config.epochs=2.0")
    assert code == 0, err
    calls = sweeps.calls()
    assert list(calls) == ["0000", "0001", "0002", "0003", "0004", "0005"]
    assert all(len(lines) == 1 for lines in calls.values())
    assert calls["0001"][0].split(" --workdir")[0] == (
        f"--config={ROOT}/configs/demo.py --config.epochs=2.0 "
        "--config.optimizer.lr=0.01 --config.progressive.image_size=(9, 9)"
    )
    lines = out.splitlines()
    assert re.fullmatch(
        r"trial +state +ema.top1 +optimizer.lr +progressive.image_size +tries +seconds "
        r"+host",
        lines[0],
    )
    assert re.match(r"4 +done +0.04 +0.04 +\(8, 9\) +1 ", lines[1])
    assert "6 trials: 6 done" in out
    assert [row["trial"] for row in sweeps.rows()] == ["4", "5", "2", "3", "0", "1"]
    for name in ("parallel_coordinate.png", "param_importances.png"):
        assert (sweeps.out / name).read_bytes().startswith(b"\x89PNG")

    # The same command finds nothing to do; another sweep of that name is refused.
    assert sweeps.run("--config.epochs=2.0")[0] == 0
    assert sweeps.calls() == calls
    code, _, err = sweeps.run("--config.epochs=3.0")
    assert code == 2 and len(err.splitlines()) == 1
    assert "config.epochs=3.0 (there: 2.0); choose another --name" in err
    other = sweeps.folder / "elsewhere"
    storage = f"--storage={sweeps.out}/study.db"
    code, _, err = sweeps.run(f"--out={other}", storage)
    assert code == 2 and "name: 'some' has another definition there" in err
    assert not other.exists()
    code, out, _ = sweeps.run("--config.epochs=2.0", f"--out={other}", storage)
    assert code == 0 and "6 trials: 6 done" in out


def test_a_killed_worker_s_trial_resumes_elsewhere(sweeps):
    sweeps.define(method="grid", keys={"optimizer.lr": [0.01, 0.02]})
    sweeps.play("test -e $run/begun || { touch $run/begun; exec sleep 60; }")
    (sweeps.out / "trials/0001").mkdir(parents=True)
    (sweeps.out / "trials/0001/begun").touch()
    with sweeps.start() as worker:
        sweeps.wait_for((sweeps.out / "trials/0000/begun").exists)
        worker.kill()
    code, out, err = sweeps.run()
    assert code == 0, err
    assert {k: len(v) for k, v in sweeps.calls().items()} == {"0000": 2, "0001": 1}
    rows = {row["trial"]: row for row in sweeps.rows()}
    assert (rows["0"]["tries"], rows["1"]["tries"]) == ("2", "1")
    assert "trial 0 of 2: again, optimizer.lr=0.01" in err


def test_sigterm_saves_and_the_same_command_resumes(sweeps):
    sweeps.define(method="grid", keys={"optimizer.lr": [0.01]})
    sweeps.play(
        "trap 'echo saved > $run/saved; exit 75' TERM\n"
        "test -e $run/saved || { touch $run/begun; while :; do sleep 0.05; done; }"
    )
    for number, count in ((signal.SIGTERM, 2), (signal.SIGINT, 1)):
        with sweeps.start(f"--workers={count}") as workers:
            sweeps.wait_for((sweeps.out / "trials/0000/begun").exists)
            workers.send_signal(number)
            text = workers.communicate()[1]
        assert workers.returncode == {15: 75, 2: 130}[number], text
        assert (sweeps.out / "trials/0000/saved").exists()
        (sweeps.out / "trials/0000/begun").unlink()
        if number == signal.SIGTERM:
            (sweeps.out / "trials/0000/saved").unlink()
    # Being stopped twice is no reason to give up.
    assert sweeps.run("--retries=0")[0] == 0
    assert sweeps.rows()[0]["tries"] == "3"


def test_trials_that_fail_and_trials_that_die(sweeps):
    sweeps.define(method="grid", keys={"optimizer.lr": [0.01, 0.02, 0.03, 0.04, 0.05]})
    sweeps.play(
        "case $rate in\n"
        "0.01) printf 'bar\\rbar\\nev2: data.path: bad\\nnote\\n'; exit 2 ;;\n"
        "0.02) kill -9 $$ ;;\n"
        "0.03) test -e $run/again || { touch $run/again; exit 75; } ;;\n"
        "0.04) rate=NaN ;; esac"
    )
    code, out, err = sweeps.run("--retries=1")
    assert code == 0, err
    found = {row["trial"]: row for row in sweeps.rows()}
    table = {n: (r["state"], r["tries"], r["reason"]) for n, r in found.items()}
    assert table == {
        "0": ("failed", "1", "data.path: bad"),
        "1": ("failed", "2", "its run was ended by SIGKILL"),
        "2": ("done", "2", ""),
        "3": ("failed", "1", "its eval.json has no number as 'ema.top1'"),
        "4": ("done", "1", ""),
    }
    assert "trial 0: data.path: bad" in out and "5 trials: 2 done, 3 failed" in out
    log = (sweeps.out / "trials/0000.log").read_text()
    assert log.endswith("note\n")


def test_a_misspelt_score_ends_the_sweep_with_its_first_trial(sweeps):
    sweeps.define(method="grid", keys=GRID, score="ema.top2")
    code, _, err = sweeps.run()
    assert code == 1 and len(sweeps.calls()) == 1
    assert err.endswith(
        "can be run or scored here: its eval.json has no 'ema.top2'; there: ema.top1\n"
    )


def test_no_score_at_all_is_exit_1(sweeps):
    sweeps.define(method="grid", keys={"optimizer.lr": [0.01]})
    sweeps.play("echo no such thing; exit 1")
    code, out, _ = sweeps.run()
    assert code == 1 and "trial 0: no such thing" in out
    assert "no param_importances.png: " in out


def test_the_worst_are_ended_early(sweeps):
    rates = [0.09, 0.08, 0.07, 0.06, 0.05, 0.01, 0.02]
    keys = {"optimizer.lr": rates}
    sweeps.define(method="grid", keys=keys, prune="median")
    line = '{\\"split\\": \\"eval\\", \\"step\\": STEP, \\"ema\\": {\\"top1\\": $rate}}'
    lines = [f'echo "{line.replace("STEP", str(s))}"' for s in (1, 2)]
    sweeps.play(
        'echo \'{"split": "train", "step": 1}\' > $run/metrics.jsonl\n'
        'test $rate = 0.02 && echo \'{"stages": [{"last_step": 2}]}\' '
        "> $run/stages.json && step=2\n"
        f"{lines[0]} >> $run/metrics.jsonl\n"
        f"test -z $step || {lines[1]} >> $run/metrics.jsonl\n"
        "test $rate = 0.01 && exec sleep 60\n"
        "test -z $step || sleep 0.5"
    )
    code, out, err = sweeps.run()
    assert code == 0, err
    rows = {row["optimizer.lr"]: row for row in sweeps.rows()}
    assert rows["0.01"]["state"] == "pruned" and rows["0.01"]["ema.top1"] == "0.01"
    assert rows["0.01"]["reason"] == "pruned after evaluation 1"
    assert float(rows["0.01"]["seconds"]) < 30
    # Bad as well, but over when the pruner saw it: its result counts.
    assert rows["0.02"]["state"] == "done"
    assert "7 trials: 6 done, 1 pruned" in out


def test_tpe_suggests_and_prints_what_it_will(sweeps):
    keys = {"optimizer.lr": {"low": 0.01, "high": 0.1}, "ema.decay": [0.99, 0.999]}
    sweeps.define(method="tpe", trials=3, keys=keys)
    code, out, err = sweeps.run("--dry_run")
    assert code == 0 and not sweeps.out.exists()
    assert "--config.optimizer.lr=AS_SUGGESTED" in out
    assert sweeps.run()[0] == 0
    rows = sweeps.rows()
    assert len({row["optimizer.lr"] for row in rows}) == 3
    assert {row["ema.decay"] for row in rows} <= {"0.99", "0.999"}


def bad_input():
    """What is defined, words, and the line that says what is wrong."""
    bad_key = {"method": "grid", "keys": {"optimizer.rate": [1]}}
    none = {"method": "grid", "keys": {"optimizer.lr": []}}
    return [
        (bad_key, (), "key 'optimizer.rate' is not in the config; nearest: optimizer."),
        (none, (), "sweep: keys['optimizer.lr']: [] is not allowed"),
        ({"method": "random", "keys": GRID}, (), "sweep: trials: 0 is not allowed"),
        (None, ("--workers=0",), "workers: 0 is not allowed; give 1 or more"),
        (None, ("--sweep=none.py",), "sweep: there is no file 'none.py'"),
        (None, ("--sweep=",), "sweep: missing; give --sweep=..."),
        (None, ("--config=none.py",), "config: "),
        (None, ("--config.epoch=3",), "config key 'epoch' is not known"),
        (None, ("--config.optimizer.lr=1",), "config.optimizer.lr: the sweep has this"),
        (None, ("--storage=grpc://127.0.0.1:1",), "'grpc://127.0.0.1:1' is not supp"),
        (None, ("--storage=postgresql://127.0.0.1:1/x",), "cannot be reached (connec"),
        (None, ("--storage=mysql://x/y",), "storage: 'mysql://x/y' is not supported"),
        (None, (f"--storage={__file__}",), "test_sweep.py' is not an SQLite database"),
        (None, ("--out=/proc/x",), "out: '/proc/x' cannot be written"),
        (None, ("--name=a/b",), "name: 'a/b' is not allowed"),
        (None, ("--grace_s=0.3",), "grace_s: 0.3 is not allowed; give twice beat_s"),
        (None, ("--beat_s=nan",), "beat_s: nan is not allowed; give seconds, above 0"),
        (None, ("--poll_s=0",), "poll_s: 0 is not allowed; give seconds, above 0"),
        (None, ("--command='x",), 'command: "\'x": No closing quotation'),
        (None, ("--command=nosuch",), "command: there is no program 'nosuch'"),
        (None, ("--nonsense",), "flags: Unknown command line flag 'nonsense'"),
        (None, ("word",), "flags: 'word' is not a flag"),
        (None, ("--only_results",), "name: there is no study 'some' in"),
        (None, ("--tpus=a", *PLACE, "--workers=2"), "workers: 2 is not allowed with"),
        (None, ("--tpus=a,b",), "flags: --tpus also needs --zone=... --project=..."),
    ]


@pytest.mark.parametrize("said, words, message", bad_input())
def test_bad_input_is_one_line_before_anything_is_made(sweeps, said, words, message):
    if said:
        sweeps.define(**said)
    code, out, err = sweeps.run(*words)
    assert code == 2 and out == "" and message in err, err
    assert len(err.splitlines()) == 1 and err.startswith("sweep: ")
    assert not sweeps.out.exists()


@pytest.mark.slow  # half a minute where two cores are busy: TensorFlow is loaded
def test_a_config_that_no_run_could_use_is_refused(sweeps):
    words = [w for w in sweeps.words() if not w.startswith("--command")]
    sweeps._capfd.readouterr()
    assert sweep.main([*words, "--config.batch_size=-1"]) == 2
    err = sweeps._capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "batch_size: -1" in err
    assert not sweeps.out.exists()


def test_scores_are_read_up_to_the_first_that_is_torn_or_not_finite(tmp_path):
    def read(text, name="ema.top1"):
        (tmp_path / "metrics.jsonl").write_text(text)
        return runner.read_scores(tmp_path, name)

    assert runner.read_scores(tmp_path, "ema.top1") == []
    lines = [
        {"split": "eval", "step": 1, "ema": {"top1": 0.5}},
        {"split": "train", "step": 2},
        {"split": "eval", "step": 2, "ema": {"top1": 1}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert read(text) == [0.5, 1.0] and read(text[:-4]) == [0.5]
    assert read(text, "raw.top1") == []
    assert read(text.replace("0.5", "NaN")) == []
    assert read(text + text.splitlines()[0].replace("0.5", "0.6")) == [0.6, 1.0]


def test_rows_are_ranked_by_what_they_came_to():
    said = {"method": "grid", "keys": {"a": [1]}, "goal": "minimize", "score": "loss"}
    states = [("failed", None), ("pruned", 0.1), ("done", 3.0), ("done", 2.0)]
    rows = [
        {"trial": n, "state": state, "loss": loss}
        for n, (state, loss) in enumerate([("running", None), *states])
    ]
    ranked = results.rank(rows, space.parse(said))
    assert [row["trial"] for row in ranked] == [4, 3, 2, 1, 0]


# On TPU nodes, with the fake gcloud of tests/helpers/fake_gcloud.py.
JOB = """\
for word in "$@"; do case "$word" in --workdir=*) run=${word#*=} ;; esac; done
mkdir -p $run; echo "$*" >> $run/calls
echo "{\\"ema\\": {\\"top1\\": 0.5}}" > $run/eval.json; exit 0"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "requirements.txt").write_text("jax==0.10.2\n")
    commit = "-c user.name=n -c user.email=e commit -qm first"
    for words in ("init -q", "add -A", commit):
        subprocess.run(["git", *words.split()], cwd=folder, check=True)
    return folder


@pytest.fixture
def on_node(sweeps, checkout, monkeypatch):
    """Makes a cloud with the node "one" that plays `job`; returns folder and words."""

    def make(job: str, name: str = "one") -> tuple[pathlib.Path, list[str]]:
        folder = sweeps.folder / "cloud"
        for key, value in fake_gcloud.install(folder, workers=1, job=job).items():
            monkeypatch.setenv(key, value)
        node = {"state": "READY", "acceleratorType": "v2-8", "runtimeVersion": "image"}
        node |= {"networkEndpoints": [{}], "queued": False}
        (folder / "nodes.json").write_text(json.dumps({name: node}))
        source = f"--source={checkout}"
        return folder, [*PLACE, source, "--nocheck_config", "--command="]

    return make


def test_trials_on_a_node(sweeps, on_node):
    folder, words = on_node(JOB)
    sweeps.define(method="grid", keys={"optimizer.lr": [0.01, 0.02]})
    code, _, err = sweeps.run("--tpus=one,two", *words)
    assert code == 2 and "tpus: node 'two' does not exist in europe-west4-a" in err
    assert not sweeps.out.exists()
    code, out, err = sweeps.run("--tpus=one", *words)
    assert code == 0, (err, *(p.read_text() for p in sweeps.out.glob("trials/*.log")))
    assert "2 trials: 2 done" in out and sweeps.rows()[0]["host"] == "one"
    calls = [*folder.glob("buckets/bucket/sweeps/some/*/calls")]
    assert sorted(path.parent.name for path in calls) == ["0000", "0001"]
    assert "--config.optimizer.lr=0.0" in calls[0].read_text()


@pytest.mark.slow  # waits for the node as for a real one
def test_a_job_on_a_node_saves_on_sigterm_and_resumes(sweeps, on_node):
    wait = "trap 'touch $FAKE_GCLOUD/saved; exit 75' TERM; touch $FAKE_GCLOUD/begun\n"
    wait += "test -e $FAKE_GCLOUD/saved || while :; do sleep 0.1; done\n"
    folder, words = on_node(wait + JOB)
    sweeps.define(method="grid", keys={"optimizer.lr": [0.01]})
    with sweeps.start("--tpus=one", *words) as worker:
        sweeps.wait_for((folder / "begun").exists, 60)
        code, _, err = sweeps.run("--tpus=one", *words)
        assert code == 2 and "tpus: node 'one' runs a job; wait for it" in err
        worker.send_signal(signal.SIGTERM)
        text = worker.communicate()[1]
    assert worker.returncode == 75, text
    assert (folder / "saved").exists()
    code, out, err = sweeps.run("--tpus=one", *words)
    assert code == 0 and "1 trials: 1 done" in out, err
    calls = (folder / "buckets/bucket/sweeps/some/0000/calls").read_text().splitlines()
    assert len(calls) == 1 and "--config.optimizer.lr=0.01" in calls[0]
    cloud = (folder / "calls.txt").read_text()
    assert "storage cat gs://bucket/sweeps/some/0000/launch.json" in cloud  # resumed


@pytest.mark.slow
def test_a_retry_on_another_node_starts_in_a_new_folder(sweeps, on_node):
    folder, words = on_node("touch $FAKE_GCLOUD/begun; sleep 60\n" + JOB)
    sweeps.define(method="grid", keys={"optimizer.lr": [0.01]})
    with sweeps.start("--tpus=one", *words) as worker:
        sweeps.wait_for((folder / "begun").exists, 60)
        worker.kill()
    sweeps.folder = sweeps.folder / "second"
    sweeps.folder.mkdir()
    other, words = on_node(JOB, name="two")
    sweeps.folder = sweeps.folder.parent
    code, _, err = sweeps.run("--tpus=two", *words)
    assert code == 0, err
    calls = [*other.glob("buckets/bucket/sweeps/some/*/calls")]
    assert [path.parent.name for path in calls] == ["0000-1"]


def test_documented_commands_print_their_golden(checkout, capfd, monkeypatch, tmp_path):
    """UPDATE_GOLDENS=1 writes it anew."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    for name in ("configs",):
        (tmp_path / name).symlink_to(ROOT / name)
    printed = ""
    commands = documented.launch_commands("launch/sweep.py")
    for words in commands:
        capfd.readouterr()
        assert sweep.main(["--dry_run", f"--source={checkout}", *words]) == 0
        out, err = capfd.readouterr()
        assert err == "", err
        out = re.sub(r"\b[0-9a-f]{12}\b", "COMMIT", out)
        out = out.replace(str(tmp_path), "HERE").replace(sys.executable, "python")
        printed += f"$ {shlex.join(words)}\n{out}"
    path = ROOT / "tests/golden/launch_sweep.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(printed)
    assert printed == path.read_text()
    assert (
        collections.Counter(
            "--tpus" in str(w) for w in documented.launch_commands("launch/sweep.py")
        )[True]
        == 1
    )

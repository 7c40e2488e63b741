"""python -m pytest -m "slow or not slow" tests/train/test_multihost.py

Several processes make one run: equal to one process, and none is left waiting.
"""

import json
import re
import signal

import jax
import numpy as np
import pytest

from ev2 import errors
from ev2.checkpoint import pretrained
from ev2.train import multihost as processes
from tests.helpers import run_processes as crowd
from tests.train.test_loop import final_state, make_photographs


@pytest.mark.parametrize(
    "flags, line",
    [
        ({"coordinator": "a:1"}, "num_processes: missing; --coordinator=HOST:PORT"),
        ({"process": 0, "num_processes": 2}, "coordinator: missing"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process": 2},
            "process: 2 is not allowed; give 0 to 1",
        ),
        (
            {"coordinator": "here", "num_processes": 2, "process": 0},
            "coordinator: 'here' is not allowed; give HOST:PORT",
        ),
        (
            {"coordinator": "a:1", "num_processes": 0, "process": 0},
            "num_processes: 0 is not allowed",
        ),
        ({"distributed": True, "process": 0}, "process: not allowed with"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, line, monkeypatch):
    def initialize(**kwargs):
        raise AssertionError(kwargs)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(errors.InputError, match=re.escape(line)) as error:
        with processes.joined(**flags):
            pass
    assert "\n" not in str(error.value)


def test_no_cluster_is_one_line(monkeypatch):
    def initialize(**kwargs):
        assert "coordinator_address" not in kwargs
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(processes, "_joined", False)
    with pytest.raises(errors.InputError, match="neither Cloud TPU nor Slurm"):
        with processes.joined(distributed=True):
            pass


def test_one_process_asks_nobody():
    with processes.joined():
        assert not processes.have_joined()
    assert processes.from_first(7) == 7
    assert processes.count_distinct([3, 2**40, 3]) == 2
    processes.check_same("config", "a")
    with pytest.raises(errors.InputError, match="mine"), processes.together():
        raise errors.InputError("mine")
    with pytest.raises(ValueError, match="Gloo"), processes.end_on_lost_process():
        raise ValueError("Gloo AllReduce failed")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process; returns its folder."""
    workdir = tmp_path_factory.mktemp("crowd") / "alone"
    one = crowd.Crowd(workdir)
    assert one.wait() == [0], one.said()
    return workdir


# Sums over devices are taken in another order. 0 is what most values differ by; 1e-6 is
# eight times the most that was seen.
TOLERANCE = 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_end_as_one(alone, count):
    workdir = alone.parent / f"of-{count}"
    several = crowd.Crowd(workdir, count)
    assert several.wait() == [0] * count, several.said()
    one, many = final_state(alone), final_state(workdir)
    assert one.keys() == many.keys()
    for path in one:
        np.testing.assert_allclose(
            many[path], one[path], rtol=0, atol=TOLERANCE, err_msg=path
        )
    results = [json.loads((run / "eval.json").read_text()) for run in (alone, workdir)]
    assert results[0]["ema"] == results[1]["ema"]
    assert np.load(workdir / "confusion.npy").sum() == 19  # every image once
    # Logs and reports are of process 0 alone.
    assert "report: " in several.said(0) and (workdir / "report.html").exists()
    assert "img/s" not in several.said(1) and "report" not in several.said(1)
    _, variables, _ = pretrained.load_pretrained(str(workdir))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))


LONG = ("--config.steps=400", "--config.log.every_steps=1")


@pytest.mark.slow
def test_sigterm_to_one_saves_at_the_same_step_on_all(alone):
    workdir = alone.parent / "told"
    two = crowd.Crowd(workdir, 2, *LONG)
    assert two.when(crowd.after_step(5), 1, send=signal.SIGTERM), two.said()
    assert two.wait() == [75, 75], two.said(1)
    found = [
        re.search(r"stopped after step (\d+), which is saved", two.said(i))
        for i in range(2)
    ]
    assert found[0] and found[1] and found[0][1] == found[1][1]
    assert pretrained.find(str(workdir)).name == found[0][1]


@pytest.mark.slow
def test_a_corrupt_image_counts_once_whoever_meets_it(alone, tmp_path):
    make_photographs(tmp_path / "images")
    keys = {"source": "folder", "path": tmp_path / "images", "eval_fraction": 0.25}
    keys |= dict.fromkeys(("num_train_images", "num_eval_images", "num_classes"), 0)
    flags = [f"--config.data.{key}={value}" for key, value in keys.items()]
    # Twelve epochs: in some of them either process has the cut one.
    flags += ["--config.steps=18", "--config.progressive.stages=1"]
    two = crowd.Crowd(alone.parent / "corrupt", 2, *flags)
    assert two.wait() == [0, 0], two.said()
    cut = str(tmp_path / "images/dark/5.jpg")
    stages = json.loads((two.workdir / "stages.json").read_text())["stages"]
    results = json.loads((two.workdir / "eval.json").read_text())
    in_training = cut in two.said(0) and cut in two.said(1)
    assert stages[0]["skipped"] == results["train_skipped"] == int(in_training)
    assert results["ema"]["skipped"] == 1 - int(in_training)
    assert results["ema"]["count"] + results["ema"]["skipped"] == 8


@pytest.mark.slow
def test_what_one_process_refuses_ends_all(alone):
    workdir = alone.parent / "refused"
    workdir.mkdir()
    # The folder is locked by another run: process 0 alone looks.
    holder = crowd.Crowd(workdir, 1, *LONG)
    assert holder.when(crowd.after_step(1), send=signal.SIGCONT)
    two = crowd.Crowd(alone.parent / "x", 2, *LONG, f"--workdir={workdir}")
    codes = two.wait(limit_s=300)
    holder.processes[0].kill()
    holder.wait()
    assert codes == [2, 2], two.said()
    assert "another process is training in" in two.said(0)
    assert f"(process {holder.processes[0].pid} on " in two.said(0)
    assert "process 0 of 2 has refused its input" in two.said(1)

"""pytest -m slow tests/test_faults.py

SIGKILL at five moments, then the same command again: nothing lost, equal bits.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.test_train import assert_equal_bits, final_state

ROOT = pathlib.Path(__file__).parent.parent
EPOCHS = float(os.environ.get("EV2_FAULT_EPOCHS", "1.5"))


def _command(workdir):
    return [
        sys.executable,
        "-m",
        "ev2",
        "train",
        f"--config={ROOT}/configs/demo.py",
        f"--config.epochs={EPOCHS}",
        "--config.checkpoint.every_steps=10",
        "--config.log.every_steps=1",
        f"--workdir={workdir}",
    ]


def _environment():
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    env.pop("XLA_FLAGS", None)  # one device, as a person would run it
    return env


def _start(workdir):
    return subprocess.Popen(
        _command(workdir),
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _last_step(workdir):
    """The last step whose line is in metrics.jsonl, or 0."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0
    except (OSError, ValueError):
        return 0


def _saving(workdir):
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def _kill_when(workdir, moment):
    """Runs until `moment()` is true and kills; returns whether it came to that."""
    process = _start(workdir)
    while process.poll() is None:
        if moment():
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stderr.close()
            return True
        time.sleep(0.002)
    assert process.returncode == 0, process.stderr.read()
    process.stderr.close()
    return False


@pytest.mark.slow
def test_five_kills_end_in_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert not _kill_when(whole, lambda: False)
    stages = json.loads((whole / "stages.json").read_text())["stages"]
    change = stages[1]["last_step"]  # the last stage change
    last = stages[-1]["last_step"]
    draw = random.Random(int(time.time()))

    def after_step(step):
        return lambda: _last_step(killed) >= step

    def during_a_save_after(step):
        return lambda: _last_step(killed) > step and _saving(killed)

    first = draw.randrange(1, change // 2)
    near = change + draw.randrange(-2, 3)
    late = draw.randrange(change + 5, last - 3)
    moments = [
        ("at the start", lambda: (killed / "config.json").exists()),
        (f"after step {first}", after_step(first)),
        ("during a save", during_a_save_after(first)),
        (f"at step {near}, stage change at {change}", after_step(near)),
        (f"after step {late}", after_step(late)),
    ]
    for name, moment in moments:
        was_killed = _kill_when(killed, moment)
        print(f"killed {name}: {was_killed}, last step logged {_last_step(killed)}")
        assert was_killed, name
    assert not _kill_when(killed, lambda: False)
    assert_equal_bits(final_state(killed), final_state(whole))
    results = [json.loads((run / "eval.json").read_text()) for run in (whole, killed)]
    assert results[0]["ema"] == results[1]["ema"]
    assert np.array_equal(*(np.load(r / "confusion.npy") for r in (whole, killed)))

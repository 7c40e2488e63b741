"""python -m pytest tests/train/test_watchdog.py

A run that stands still shows its stacks and ends; one that is busy otherwise does not.
"""

import subprocess
import sys

import pytest

from ev2 import errors
from ev2.train import validate as check
from ev2.train import watchdog

SCRIPT = """
import time
from ev2 import watchdog
dog = watchdog.Watchdog(0.4)
time.sleep(1)  # compiling: nothing is watched before the first step
dog.beat(1)
dog.rest()
time.sleep(1)  # evaluating
for step in range(5):
    dog.beat(step)
    time.sleep(0.2)
print("awake", flush=True)
def stand_still():
    time.sleep(60)
stand_still()
"""


def test_a_stalled_step_ends_with_the_stacks():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 1 and run.stdout == "awake\n"
    assert "in stand_still" in run.stderr and "Current thread" in run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ev2: stopped: no step was done for 0.4 s after step 4")
    assert "stall_seconds" in last


def test_off_and_closed_watch_nothing():
    watchdog.Watchdog(0).beat(1)
    dog = watchdog.Watchdog(0.1)
    dog.beat(1)
    dog.close()
    assert dog._closed.wait(0.3)  # and the process is still here


@pytest.mark.parametrize("seconds", [-1, "10", None, float("nan"), True])
def test_times_that_are_none_are_refused(seconds):
    with pytest.raises(errors.InputError, match="stall_seconds"):
        check.check_stall(seconds)

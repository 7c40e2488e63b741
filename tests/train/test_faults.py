"""python -m pytest -m slow tests/train/test_faults.py

Twenty SIGKILLs at random moments and what else befalls runs, then the same command
again: nothing is lost beyond the last completed save, and the end is the same bits. A
table says what happened. EV2_FAULT_STEPS and EV2_FAULT_KILLS make it longer or shorter.
"""

import os
import pathlib
import random
import re
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.helpers import run_processes as crowd
from tests.train.test_loop import assert_equal_bits, final_state

STEPS = int(os.environ.get("EV2_FAULT_STEPS", "600"))
KILLS = int(os.environ.get("EV2_FAULT_KILLS", "20"))
SAVED_EVERY = 10
FLAGS = (
    f"--config.steps={STEPS}",
    "--config.progressive.stages=3",
    f"--config.checkpoint.every_steps={SAVED_EVERY}",
    "--config.log.every_steps=1",
)
CHANGES = (STEPS // 3, 2 * STEPS // 3)  # steps before which the image size changes


class Table:
    """What happened, a row for each fault."""

    def __init__(self):
        self.rows = [("fault", "at step", "outcome", "steps lost")]

    def add(self, *row) -> None:
        self.rows.append(tuple(str(cell) for cell in row))

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in self.rows
        ]
        return "\n".join(["", *lines])


@pytest.fixture(scope="module")
def table(request):
    """Printed at the end, whatever pytest captures."""
    table = Table()
    yield table
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(table)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("faults") / "whole"
    run = crowd.Crowd(workdir, 1, *FLAGS)
    assert run.wait() == [0], run.said()
    return workdir


def newest(workdir: pathlib.Path) -> int:
    """The step of the newest completed save, or 0."""
    steps = (workdir / "checkpoints").glob("[0-9]*")
    return max((int(s.name) for s in steps if s.name.isdigit()), default=0)


def ends_like(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    """Asserts that two runs came to the same weights and the same predictions."""
    assert_equal_bits(final_state(workdir), final_state(whole))
    tables = [np.load(run / "confusion.npy") for run in (workdir, whole)]
    assert np.array_equal(*tables)


def draw_kills(draw: random.Random) -> list[tuple[int, str]]:
    """(step, kind) of each kill, by step."""
    kills = [
        (change + draw.randrange(-2, 3), "at a stage change") for change in CHANGES
    ]
    kills += [(0, "at the start")]
    kills += [(step, "while compiling") for step in (1, CHANGES[0] + 5)]
    others = draw.sample(range(5, STEPS - 20), KILLS - len(kills))
    kills += [(step, draw.choice(["during a save", "at a step"])) for step in others]
    return sorted(kills)


def moment(kind: str, step: int):
    """When to kill, as a question to ask of a run."""
    if kind == "at the start":
        return lambda run: (run.workdir / "config.json").exists()
    if kind == "during a save":
        after = crowd.after_step(step)
        return lambda run: after(run) and run.is_saving()
    if kind == "while compiling":  # the next stage's program: the first step is done
        return lambda run: run.has_begun() and run.last_step() > run.begun_after()
    return crowd.after_step(step)


@pytest.mark.slow
def test_kills_end_in_the_same_bits(whole, table):
    seed = int(time.time())
    print(f"seed {seed}")
    workdir = whole.parent / "killed"
    kills = draw_kills(random.Random(seed))
    for number, (step, kind) in enumerate(kills):
        # An empty cache for those that are to be compiling.
        cache = f"compiled-{number}" if kind == "while compiling" else "compiled"
        run = crowd.Crowd(workdir, 1, *FLAGS, compiled=cache)
        assert run.when(moment(kind, step)), (kind, step, run.said())
        assert run.wait() == [-signal.SIGKILL]
        _continues(workdir, run.last_step(), f"SIGKILL {kind}", "killed", table)
    run = crowd.Crowd(workdir, 1, *FLAGS)
    assert run.wait() == [0], run.said()
    ends_like(workdir, whole)
    table.add(f"after {len(kills)} SIGKILLs", STEPS, "equal bits", 0)


def _continues(workdir, last: int, fault: str, outcome: str, table: Table) -> None:
    """Notes what the fault cost: steps since the last completed save, at most."""
    saved = newest(workdir)
    # A step is logged before it is saved, and the save goes on beside the next ones.
    assert 0 <= last - saved <= 3 * SAVED_EVERY, (fault, last, saved)
    table.add(fault, last, f"{outcome}, goes on from {saved}", last - saved)


@pytest.mark.slow
def test_sigterm_loses_nothing(whole, table):
    workdir = whole.parent / "told"
    for step in (STEPS // 5, CHANGES[0] - 1, CHANGES[1] + 3):
        run = crowd.Crowd(workdir, 1, *FLAGS)
        assert run.when(crowd.after_step(step), send=signal.SIGTERM)
        assert run.wait() == [75], run.said()
        _continues(workdir, newest(workdir), "SIGTERM", "saved, exit 75", table)
        assert f"stopped after step {newest(workdir)}" in run.said()
    assert crowd.Crowd(workdir, 1, *FLAGS).wait() == [0]
    ends_like(workdir, whole)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_one_save(whole, table):
    workdir = whole.parent / "damaged"
    run = crowd.Crowd(workdir, 1, *FLAGS)
    assert run.when(lambda run: newest(workdir) >= CHANGES[0] + 2 * SAVED_EVERY)
    run.wait()
    last, step = run.last_step(), newest(workdir)
    files = (workdir / f"checkpoints/{step}/state").rglob("*")
    victim = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(victim, victim.stat().st_size // 2)
    again = crowd.Crowd(workdir, 1, *FLAGS)
    assert again.wait() == [0], again.said()
    assert f"The checkpoint of step {step} is corrupt" in again.said()
    before = again.begun_after()
    assert before == step - SAVED_EVERY and (workdir / f"damaged/{step}").is_dir()
    fault = "SIGKILL, newest checkpoint cut in half"
    table.add(fault, last, f"set aside, goes on from {before}", last - before)
    ends_like(workdir, whole)


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_saved(whole, table):
    small = whole.parent / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        table.add("disk full", "-", "skipped: no small disk can be mounted", "-")
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        workdir = small / "run"
        run = crowd.Crowd(workdir, 1, *FLAGS, home=whole.parent)
        assert run.when(crowd.after_step(STEPS // 4), send=signal.SIGCONT)
        _fill(small / "ballast")
        assert run.wait() == [1], run.said()
        line = run.said().strip().splitlines()[-1]
        assert "No space left on device" in line and "Traceback" not in run.said()
        (small / "ballast").unlink()
        _continues(workdir, run.last_step(), "disk full", "one line, exit 1", table)
        again = crowd.Crowd(workdir, 1, *FLAGS, home=whole.parent)
        assert again.wait() == [0], again.said()
        assert again.begun_after() > 0
        ends_like(workdir, whole)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def _fill(path: pathlib.Path) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass  # full


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_peer_ends_the_other(whole, table, victim):
    flags = (*FLAGS, "--config.steps=90")
    home = whole.parent
    undisturbed = home / "two"
    if not undisturbed.exists():
        assert crowd.Crowd(undisturbed, 2, *flags).wait() == [0, 0]
    workdir = home / f"two-{victim}"
    run = crowd.Crowd(workdir, 2, *flags)
    assert run.when(crowd.after_step(35), victim), run.said()
    started = time.monotonic()
    codes = run.wait(limit_s=300)
    seconds = time.monotonic() - started
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] in (
        1,
        -signal.SIGABRT,
    )
    assert re.search("another (process|task)", run.said(1 - victim))
    outcome = f"process {1 - victim} ends after {seconds:.0f} s"
    fault = f"SIGKILL of process {victim} of 2"
    _continues(workdir, run.last_step(), fault, outcome, table)
    again = crowd.Crowd(workdir, 2, *flags)
    assert again.wait() == [0, 0], again.said()
    ends_like(workdir, undisturbed)

"""pytest tests/train/test_next_stage.py

Stages made ready beside the loop: what runs when, what is kept, how failures surface.
"""

import subprocess
import sys
import time

import pytest

from ev2 import progressive
from ev2.train import next_stage as ahead


def _stages(*sizes, steps=100):
    return [
        progressive.Stage(
            index=i,
            first_step=i * steps,
            last_step=(i + 1) * steps,
            first_image=8 * i * steps,
            image_size=size,
            batch_size=8,
            dropout=0.0,
            randaugment=0.0,
            mixup=0.0,
            cutmix=0.0,
            drop_path=0.0,
        )
        for i, size in enumerate(sizes)
    ]


class _Log:
    """What was compiled and opened, in order."""

    def __init__(self, failing=None):
        self.done, self.failing = [], failing

    def prepared(self, stages, *, early):
        return ahead.Prepared(
            stages,
            compile_step=lambda stage: self._add("compile", stage.image_size),
            open_data=lambda stage: self._add("open", stage.image_size),
            compile_eval_step=lambda: self._add("compile", "evaluation"),
            early=early,
        )

    def _add(self, what, of):
        if (what, of) == self.failing:
            raise MemoryError(f"{what} {of}")
        self.done.append((what, of))
        return what, of

    def wait_for(self, *entry):
        deadline = time.monotonic() + 10
        while entry not in self.done:
            assert time.monotonic() < deadline, (entry, self.done)
            time.sleep(0.005)


def test_next_stage_is_compiled_at_once_and_its_data_opened_near_the_end():
    log = _Log()
    prepared = log.prepared(_stages(8, 12), early=True)
    assert prepared.take()[::2] == (("compile", 8), ("open", 8))
    log.wait_for("compile", 12)
    log.wait_for("compile", "evaluation")
    prepared.watch(ahead.DATA_STEPS + 1)
    assert ("open", 12) not in log.done
    prepared.watch(ahead.DATA_STEPS)
    log.wait_for("open", 12)
    prepared.watch(0)
    assert prepared.take()[::2] == (("compile", 12), ("open", 12))
    assert prepared.eval_step() == ("compile", "evaluation")
    assert len(log.done) == len(set(log.done)) == 5  # nothing twice


def test_late_means_when_it_is_due():
    log = _Log()
    prepared = log.prepared(_stages(8, 12), early=False)
    prepared.take()
    prepared.watch(0)
    assert sorted(log.done) == [("compile", 8), ("open", 8)]
    prepared.take()
    assert prepared.eval_step() == ("compile", "evaluation")
    assert sorted(log.done[2:4]) == [("compile", 12), ("open", 12)]


@pytest.mark.parametrize("early", [True, False])
def test_a_program_is_kept_while_a_later_stage_has_its_sizes(early):
    log = _Log()
    prepared = log.prepared(_stages(8, 12, 8, 16, 12), early=early)
    sizes = [prepared.take().program[1] for _ in range(5)]
    assert sizes == [8, 12, 8, 16, 12]
    compiled = [of for what, of in log.done if what == "compile" and of != "evaluation"]
    assert sorted(compiled) == [8, 12, 16]
    assert not prepared._programs


@pytest.mark.parametrize("failing", [("compile", 12), ("open", 12)])
def test_a_failure_surfaces_while_the_stage_before_still_runs(failing):
    log = _Log(failing)
    prepared = log.prepared(_stages(8, 12), early=True)
    prepared.take()
    with pytest.raises(MemoryError) as raised:
        for _ in range(1000):
            prepared.watch(10)
            time.sleep(0.005)
    assert "stage 1 (12 px)" in raised.value.__notes__[0]


_LEAVES = """
import threading
from ev2 import ahead, cli
def main():
    ahead.Task("compiling", threading.Event().wait)  # never ends
    {statement}
cli.main = main
cli.run()
"""


@pytest.mark.parametrize(
    "statement, code", [("return 2", 2), ("raise OSError('x')", 1)]
)
def test_the_command_leaves_a_compilation_behind(statement, code):
    program = _LEAVES.format(statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True
    )
    assert done.returncode == code
    assert ("OSError: x" in done.stderr) == (code == 1)

"""pytest tests/train/test_next_stage.py

The next stage, compiled and opened while one trains: order, reuse, failures.
"""

import itertools
import subprocess
import sys
import time
import types

import pytest

from ev2 import progressive
from ev2.train import next_stage, preemption


def make_stages(*sizes, steps=100):
    return [
        progressive.Stage(
            index=i,
            first_step=i * steps,
            last_step=(i + 1) * steps,
            first_image=8 * i * steps,
            image_size=size,
            batch_size=8,
            strengths={},
        )
        for i, size in enumerate(sizes)
    ]


class Experiment:
    """Records what is compiled and opened, in order."""

    def __init__(self, failing=None):
        self.done, self.failing, self.open = [], failing, 0

    def compile_train_step(self, stage):
        self._add("compile", stage.image_size)
        return types.SimpleNamespace(
            size=stage.image_size, cost_analysis=lambda: {"flops": 7.0}
        )

    def compile_eval_step(self):
        return self._add("compile", "evaluation")

    def open_train_data(self, stage, first_step):
        self._add("open", stage.image_size)
        return types.SimpleNamespace(first_step=first_step, close=self._close)

    def _close(self):
        self.done.append(("close",))

    def _add(self, *entry):
        if entry == self.failing:
            raise MemoryError(entry)
        self.done.append(entry)
        return entry

    def wait_for(self, *entry):
        deadline = time.monotonic() + 20
        while entry not in self.done:
            assert time.monotonic() < deadline, (entry, self.done)
            time.sleep(0.005)


def start(experiment, *sizes, early, first_step=0):
    coming = next_stage.NextStage(
        experiment, make_stages(*sizes), start=first_step, early=early
    )
    return coming, coming.stages(preemption.Listener())


def test_next_stage_is_compiled_at_once_and_its_data_opened_near_the_end():
    experiment = Experiment()
    coming, stages = start(experiment, 8, 12, early=True, first_step=30)
    ready = next(stages)
    assert (ready.train_step.size, ready.flops, ready.first_step) == (8, 7.0, 30)
    assert ready.batches.first_step == 30
    experiment.wait_for("compile", 12)
    experiment.wait_for("compile", "evaluation")
    coming.check(next_stage.DATA_STEPS + 1)
    assert ("open", 12) not in experiment.done
    coming.check(next_stage.DATA_STEPS)
    experiment.wait_for("open", 12)
    ready = next(stages)
    assert (ready.train_step.size, ready.batches.first_step) == (12, 100)
    assert coming.eval_step() == ("compile", "evaluation")
    assert next(stages, None) is None
    assert len(experiment.done) == 5 + 2  # nothing twice, and both pipelines closed
    assert experiment.done.count(("close",)) == 2


def test_late_means_when_it_is_due():
    experiment = Experiment()
    coming, stages = start(experiment, 8, 12, early=False)
    next(stages)
    coming.check(0)
    assert sorted(experiment.done) == [("compile", 8), ("open", 8)]
    next(stages)
    assert coming.eval_step() == ("compile", "evaluation")
    assert sorted(experiment.done[3:5]) == [("compile", 12), ("open", 12)]


@pytest.mark.parametrize("early", [True, False])
def test_a_program_is_kept_while_a_later_stage_has_its_sizes(early):
    experiment = Experiment()
    _, stages = start(experiment, 8, 12, 8, 16, 12, early=early)
    assert [ready.train_step.size for ready in stages] == [8, 12, 8, 16, 12]
    compiled = [x[1] for x in experiment.done if x[0] == "compile"]
    assert sorted(set(compiled) - {"evaluation"}) == [8, 12, 16]
    assert len(compiled) == len(set(compiled))


@pytest.mark.parametrize("failing", [("compile", 12), ("open", 12)])
def test_a_failure_surfaces_while_the_stage_before_still_runs(failing):
    coming, stages = start(Experiment(failing), 8, 12, early=True)
    next(stages)
    with pytest.raises(MemoryError) as raised:
        for _ in itertools.repeat(None, 2000):
            coming.check(10)
            time.sleep(0.005)
    assert "stage 1 (12 px)" in raised.value.__notes__[0]


_LEAVES = """
import threading, types
STAGE = types.SimpleNamespace(image_size=8, batch_size=8, index=0)
from ev2.cli import main as cli
from ev2.train import next_stage, preemption
class Experiment:
    def compile_train_step(self, stage):
        threading.Event().wait()  # never ends
def main():
    next_stage.NextStage(Experiment(), [STAGE], start=0, early=True)
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

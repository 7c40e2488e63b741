"""Compiles the next stage's step and opens its data while the current stage trains.

XLA's compiler cannot be interrupted. The threads here are daemons: the process ends
without waiting for them.
"""

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, NamedTuple

from ev2 import progressive
from ev2.train import compile, preemption, setup

THREAD_NAME = "ev2-next-stage"
# Steps before its end at which a stage opens the next one's data: enough for the first
# batches, and few enough that two pipelines do not share the cores for long.
DATA_STEPS = 64


class ReadyStage(NamedTuple):
    """A stage with everything that its steps need."""

    stage: progressive.Stage
    first_step: int  # first step to take, later than the stage's after a resume
    train_step: Callable[..., Any]  # `step.make_train_step`, compiled
    flops: float  # per step and device; 0 = unknown
    compile_seconds: float
    batches: setup.TrainData


class NextStage:
    """The stages left of a run, each compiled and opened before the last one ends.

    At most two programs and two pipelines exist at a time, beside the programs that a
    later stage uses again. With `early=False` nothing starts before it is needed.
    """

    def __init__(
        self,
        experiment: setup.Experiment,
        stages: list[progressive.Stage],
        *,
        start: int,
        early: bool,
    ):
        """Starts compiling the first stage.

        Args:
            experiment: compiles steps and opens data.
            stages: stages left, in order.
            start: first step to take; the first stage may have begun before.
            early: False prepares each stage when it is due.
        """
        self._experiment, self._left, self._start = experiment, list(stages), start
        self._early = early
        self._programs: dict[tuple[int, int], Future] = {}
        self._batches: Future | None = None
        self._eval_step: Future | None = None
        if early and self._left:
            self._compile(self._left[0])

    def stages(self, listener: preemption.Listener) -> Generator[ReadyStage]:
        """Yields each stage when its program is compiled and its first batch is read.

        Raises:
            PreemptedError: SIGTERM came while waiting.
            Exception: compiling or opening failed; a note names the stage.
        """
        while self._left:
            stage = self._left[0]
            first_step = max(stage.first_step, self._start)
            with listener.waiting(first_step):
                program, batches = self._compile(stage), self._open(stage)
                train_step, flops, seconds = program.result()
                ready = batches.result()
            self._left.pop(0)
            self._batches = None
            needed = {_program_key(later) for later in self._left}
            self._programs = {k: v for k, v in self._programs.items() if k in needed}
            if self._early:
                self._compile_evaluation()
                if self._left:
                    self._compile(self._left[0])
            try:
                yield ReadyStage(stage, first_step, train_step, flops, seconds, ready)
            finally:
                ready.close()

    def check(self, steps_left: int) -> None:
        """Starts what is due `steps_left` steps before the next stage; never waits.

        Raises:
            Exception: compiling or opening has failed; a note names the stage.
        """
        if not self._early:
            return
        if self._left and steps_left <= DATA_STEPS:
            self._open(self._left[0])
        for future in (*self._programs.values(), self._batches, self._eval_step):
            if future is not None and future.done():
                future.result()

    def eval_step(self) -> Any:
        """Returns the compiled evaluation step; waits if it is not ready yet."""
        return self._compile_evaluation().result()

    def _compile(self, stage: progressive.Stage) -> Future:
        def compile_step() -> tuple[Any, float, float]:
            started = time.monotonic()
            program = self._experiment.compile_train_step(stage)
            seconds = time.monotonic() - started
            return program, compile.count_flops(program), seconds

        key = _program_key(stage)
        if key not in self._programs:
            task = f"compiling the step of {_describe(stage)}"
            self._programs[key] = _in_background(task, compile_step)
        return self._programs[key]

    def _open(self, stage: progressive.Stage) -> Future:
        first_step = max(stage.first_step, self._start)
        if self._batches is None:
            self._batches = _in_background(
                f"opening the data of {_describe(stage)}",
                lambda: self._experiment.open_train_data(stage, first_step),
            )
        return self._batches

    def _compile_evaluation(self) -> Future:
        if self._eval_step is None:
            self._eval_step = _in_background(
                "compiling the evaluation", self._experiment.compile_eval_step
            )
        return self._eval_step


def _in_background(task: str, function: Callable[[], Any]) -> Future:
    """Runs `function` in a daemon thread; `task` names it in an error's note.

    An executor of `concurrent.futures` would keep the process alive until the compiler
    is done.
    """
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            error.add_note(f"while {task}")
            future.set_exception(error)

    threading.Thread(target=run, name=THREAD_NAME, daemon=True).start()
    return future


def _program_key(stage: progressive.Stage) -> tuple[int, int]:
    return stage.image_size, stage.batch_size


def _describe(stage: progressive.Stage) -> str:
    return f"stage {stage.index} ({stage.image_size} px)"

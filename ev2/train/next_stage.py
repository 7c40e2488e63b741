"""What is made ready beside the training loop, so that the loop need not wait for it.

XLA's compiler cannot be interrupted. The threads here die with the process, and the
command line leaves without waiting for them (see `cli.run`).
"""

import collections
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ev2 import progressive

THREAD_NAME = "ev2-ahead"
# Steps before its end at which a stage opens the next one's data: enough for the first
# batches, and few enough that two pipelines do not share the cores for long.
DATA_STEPS = 64


class Task:
    """The result of `function()`, computed in a thread of its own."""

    def __init__(self, what: str, function: Callable[[], Any]):
        """Starts at once. `what` says in an error what was being done."""
        self._what, self._function = what, function
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # raised again where the result is wanted
            error.add_note(f"while {self._what}")
            self._error = error

    def check(self) -> None:
        """Raises what the function raised, if it has; does not wait."""
        if self._error is not None:
            raise self._error

    def result(self) -> Any:
        """Waits for the function and returns its result, or raises what it raised."""
        self._thread.join()
        self.check()
        return self._result


class Ready(NamedTuple):
    """What a stage needs to begin."""

    program: Any  # what `compile_step` returned
    compile_seconds: float  # spent compiling, wherever
    data: Any  # what `open_data` returned


class Prepared:
    """The programs and data of stages, in order, each ready when the one before ends.

    While a stage runs, the next one's step is compiled, and its data are opened
    `DATA_STEPS` before they are needed: at most two programs and two pipelines exist
    at a time, beside the programs that a later stage uses again.
    """

    def __init__(
        self,
        stages: Sequence[progressive.Stage],
        *,
        compile_step: Callable[[progressive.Stage], Any],
        open_data: Callable[[progressive.Stage], Any],
        compile_eval_step: Callable[[], Any],
        early: bool,
    ):
        """Starts with the first stage.

        Args:
            stages: those to come, in order.
            compile_step: returns the program of a stage's image and batch size.
            open_data: returns a stage's data; called once for each.
            compile_eval_step: returns the evaluation's program; called once.
            early: whether to do all this beside the running stage, or when it is due.
        """
        self._stages = collections.deque(stages)
        self._compile_step, self._open_data = compile_step, open_data
        self._compile_eval_step = compile_eval_step
        self._early = early
        self._programs: dict[tuple[int, int], Task] = {}
        self._data: Task | None = None
        self._eval_step: Task | None = None
        if early and self._stages:
            self._start_compiling(self._stages[0])

    def take(self) -> Ready:
        """Returns what the next stage needs; waits for what is not ready yet.

        Raises:
            What compiling or opening raised, with the stage in a note.
        """
        stage = self._stages[0]
        compiling = self._start_compiling(stage)
        opening = self._start_opening(stage)
        program, seconds = compiling.result()
        ready = Ready(program, seconds, opening.result())
        self._stages.popleft()
        self._data = None
        coming = {_sizes(stage) for stage in self._stages}
        self._programs = {k: v for k, v in self._programs.items() if k in coming}
        if self._early:
            self._start_evaluation()
            if self._stages:
                self._start_compiling(self._stages[0])
        return ready

    def watch(self, steps_left: int) -> None:
        """To be called after every step, `steps_left` before the next stage.

        Raises:
            What compiling or opening has raised meanwhile.
        """
        if not self._early:
            return
        if self._stages and steps_left <= DATA_STEPS:
            self._start_opening(self._stages[0])
        for task in (*self._programs.values(), self._data, self._eval_step):
            if task is not None:
                task.check()

    def eval_step(self) -> Any:
        """Returns the evaluation's program; waits if it is not ready yet."""
        return self._start_evaluation().result()

    def _start_compiling(self, stage: progressive.Stage) -> Task:
        def compile_timed() -> tuple[Any, float]:
            started = time.monotonic()
            program = self._compile_step(stage)
            return program, time.monotonic() - started

        key = _sizes(stage)
        if key not in self._programs:
            what = f"compiling the step of {_name(stage)}"
            self._programs[key] = Task(what, compile_timed)
        return self._programs[key]

    def _start_opening(self, stage: progressive.Stage) -> Task:
        if self._data is None:
            what = f"opening the data of {_name(stage)}"
            self._data = Task(what, lambda: self._open_data(stage))
        return self._data

    def _start_evaluation(self) -> Task:
        if self._eval_step is None:
            self._eval_step = Task("compiling the evaluation", self._compile_eval_step)
        return self._eval_step


def _sizes(stage: progressive.Stage) -> tuple[int, int]:
    """What a program depends on."""
    return stage.image_size, stage.batch_size


def _name(stage: progressive.Stage) -> str:
    return f"stage {stage.index} ({stage.image_size} px)"

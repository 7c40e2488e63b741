"""Measures the cost of a change of stage and of a checkpoint: `ev2 bench transition`.

    ev2 bench transition --config=configs/demo.py

Trains the recipe twice from an empty folder, each time in a process of its own without
JAX's cache of compiled programs. The first run compiles the next stage in the
background, as training does; the second compiles it when it is due. The gap is the time
from the end of a stage (its last evaluation included) to the end of the first step of
the next stage, less the time of a step of that stage. The cost of a checkpoint is the
delay of the ten steps after it. Both are counted in steps.
"""

import concurrent.futures
import itertools
import json
import multiprocessing
import pathlib
import statistics
import tempfile
from typing import Any

import tabulate
from ml_collections import ConfigDict

from ev2 import errors
from ev2.train import plan

_AFTER_SAVE = 10  # steps during which a checkpoint is still being written


def measure(config: ConfigDict) -> dict[str, Any]:
    """Returns the gaps between the stages of a run.

    Returns:
        `{"median_step_seconds", "gap_steps", "gap_seconds", "late": {the same keys},
        "save_steps"}`: for each stage after the first the median time of its steps,
        and the gap before it in steps and in seconds. "late" is the run without
        background compilation. "save_steps" is the cost of one checkpoint of
        `checkpoint.every_steps`, None without a checkpoint within a stage.

    Raises:
        InputError: the config is bad, or has one stage.
    """
    stages = plan.make_plan(config)["stages"]
    if len(stages) < 2:
        raise errors.InputError(
            f"progressive.stages: {len(stages)}; a transition needs 2 or more"
        )
    ahead, late = (run(config, early=early) for early in (True, False))
    every = config.checkpoint.every_steps
    return {**gaps(ahead), "late": gaps(late), "save_steps": save_steps(ahead, every)}


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `measure` as a table: a row per change of stage."""
    rows = []
    for i, step in enumerate(figures["median_step_seconds"]):
        cells = [
            f"{mode['gap_seconds'][i]:.2f} s, {mode['gap_steps'][i]:.1f} steps"
            for mode in (figures, figures["late"])
        ]
        rows.append((f"{i} to {i + 1}", f"{step * 1e3:.1f} ms", *cells))
    headings = ("change", "step", "gap, prepared ahead", "gap, when due")
    table = tabulate.tabulate(rows, headings, tablefmt="plain", disable_numparse=True)
    if figures["save_steps"] is not None:
        table += f"\na checkpoint: {figures['save_steps']:.2f} steps"
    return table


def run(config: ConfigDict, *, early: bool) -> list[dict[str, Any]]:
    """Returns `train(config, early)`, run in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, _disable_cache) as process:
        return process.submit(train, config.to_dict(), early).result()


def _disable_cache() -> None:
    import jax

    jax.config.update("jax_enable_compilation_cache", False)


def train(values: dict[str, Any], early: bool) -> list[dict[str, Any]]:
    """Trains, logs every step, and returns the lines of metrics.jsonl."""
    from ev2.train import loop

    config = ConfigDict(values)
    config.progressive.prepare_ahead = early
    config.log.every_steps = 1
    with tempfile.TemporaryDirectory() as folder:
        loop.train_and_evaluate(config, folder)
        text = (pathlib.Path(folder) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def gaps(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Returns step times and gaps, given the lines of a run that logs every step."""
    keys = ("median_step_seconds", "gap_steps", "gap_seconds")
    figures: dict[str, list[float]] = {key: [] for key in keys}
    for stage in range(1, max(line["stage"] for line in lines) + 1):
        end = max(line["time"] for line in lines if line["stage"] < stage)
        trained = [line for line in lines if line["split"] == "train"]
        times = [line["time"] for line in trained if line["stage"] == stage]
        steps = [b - a for a, b in itertools.pairwise(times)]
        median = statistics.median(steps or [times[0] - end])
        gap = max(times[0] - end - median, 0.0)
        figures["median_step_seconds"].append(round(median, 5))
        figures["gap_steps"].append(round(gap / median, 2))
        figures["gap_seconds"].append(round(gap, 3))
    return figures


def save_steps(lines: list[dict[str, Any]], every: int) -> float | None:
    """Returns the mean delay by a checkpoint, in steps; None without a checkpoint."""
    times = {line["step"]: line for line in lines if line["split"] == "train"}
    seconds = {
        step: line["time"] - times[step - 1]["time"]
        for step, line in times.items()
        if step - 1 in times and times[step - 1]["stage"] == line["stage"]
    }
    costs = []
    for step in range(every, max(times) + 1, every) if every else ():
        after = [seconds.get(step + i) for i in range(1, _AFTER_SAVE + 1)]
        stage = times[step]["stage"] if step in times else None
        usual = [s for n, s in seconds.items() if times[n]["stage"] == stage]
        if None not in after:
            median = statistics.median(usual)
            costs.append(sum(s - median for s in after if s is not None) / median)
    return round(statistics.mean(costs), 2) if costs else None

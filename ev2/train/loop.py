"""The loop: config -> stages -> (per stage) data, program, steps -> checkpoint."""

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ev2 import errors, progressive, sharding
from ev2.checkpoint import integrity, manager, pretrained
from ev2.data import pipeline
from ev2.evaluation import evaluate
from ev2.train import compile as programs
from ev2.train import early_stopping as watch
from ev2.train import initialize as initial
from ev2.train import logger as logbook
from ev2.train import multihost as processes
from ev2.train import next_stage as ahead
from ev2.train import plan, preemption, profiling, watchdog
from ev2.train import setup as jobs
from ev2.train import state as states
from ev2.train import workdir as run_folder


def train_and_evaluate(
    config: ConfigDict, workdir: str, *, profile: range = range(0)
) -> dict[str, Any]:
    """Trains through all stages, resuming by itself, and evaluates.

    Everything in `config` is checked before anything is compiled or written. A run
    that was stopped at any moment goes on from its newest checkpoint and ends in the
    same parameters, bit for bit.

    Args:
      config: see ev2/config.py.
      workdir: folder of the run; see the README for what is written there.
      profile: steps that JAX's profiler records, into `workdir/profile`.

    Returns:
      The content of `eval.json`.

    Raises:
      InputError: for a bad config, unreachable data, or a folder that holds another
        run.
      FloatingPointError: if the loss is not finite; names the steps.
      PreemptedError: SIGTERM came; the state is saved.
      StoppedError: a checkpoint could not be saved.
    """
    with processes.together():
        job = jobs.prepare(config, workdir)
        profiling.check_steps(profile, job.stages[-1].last_step)
    processes.check_same("config", f"{job.config} {job.info}")
    config, writes = job.config, jax.process_index() == 0
    with contextlib.ExitStack() as stack:  # closed on every way out, in reverse order

        def opened(thing):
            return stack.enter_context(contextlib.closing(thing))

        notice = opened(preemption.Notice())  # listens while a save is being written
        with processes.together():
            folder = opened(run_folder.RunFolder(workdir, config, writes=writes))
        with processes.together():
            if writes:
                integrity.quarantine(workdir)
        checkpoints = opened(
            manager.Checkpoints(
                workdir,
                keep=config.checkpoint.keep,
                keep_best=config.checkpoint.keep_best,
            )
        )
        stack.enter_context(processes.alarm())
        start = processes.from_first(checkpoints.latest_step() or 0)
        images = job.info.num_train_images
        run = _Run(
            job=job,
            folder=folder,
            checkpoints=checkpoints,
            log=opened(logbook.Logbook(folder, job.stages, images, first_step=start)),
            profiler=opened(
                profiling.Profiler(workdir, profile if writes else range(0))
            ),
            notice=notice,
            dog=opened(watchdog.Watchdog(config.stall_seconds)),
            start=start,
            opened=opened,
        )
        try:
            results = run.train()
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(run.explain_stop()) from error
        return _write_results(folder, results, config)


class _Run:
    """A run in progress: the loop, from step `start` on.

    `opened` sees to closing what it is given.
    """

    def __init__(
        self,
        *,
        job: jobs.Job,
        folder: run_folder.RunFolder,
        checkpoints: manager.Checkpoints,
        log: logbook.Logbook,
        profiler: profiling.Profiler,
        notice: preemption.Notice,
        dog: watchdog.Watchdog,
        start: int,
        opened: Callable[[Any], Any],
    ):
        self._job, self._start, self._opened = job, start, opened
        self._folder, self._checkpoints, self._log = folder, checkpoints, log
        self._profiler, self._notice, self._dog = profiler, notice, dog
        self._meta = pretrained.make_metadata(
            job.model, job.info.class_names, config=job.config
        )
        shapes = programs.abstract_state(job.model, job.optimizer, job.config, job.mesh)
        self._shapes, self._trained = shapes, start
        # Of all evaluations; a checkpoint knows those before it.
        metadata = checkpoints.read_metadata(start) if start else {}
        self._scores = metadata.get("scores", [])
        self._coming = [] if self._is_over() else _coming(job, start)
        self._prepared = _prepare_stages(job, start, shapes, self._coming)
        if start:
            self._state = checkpoints.restore(start, shapes)
        else:
            self._state = _create_state(job)
        self._notes = _begin_notes(job, folder, start, self._state)
        self._results: dict[str, Any] | None = None  # of the last evaluation

    def train(self) -> dict[str, Any]:
        """Goes through the stages to come. Returns what the run comes to."""
        self._log.say(plan.format_table(self._job.table))
        self._log.say(_summary(self._job, self._notes, self._folder, self._start))
        for stage in self._coming:
            if not self._is_over():
                self._train_stage(stage)
        step, results = self._finish()
        # A stage of less than an epoch may not meet every corrupt picture.
        skipped = [stage.get("skipped", 0) for stage in self._notes["stages"]]
        return {
            **results,
            "step": step,
            "trained_steps": self._trained,
            "train_skipped": max(skipped),
        }

    def explain_stop(self) -> str:
        """Says where the run stands, and from where it goes on."""
        saved = self._checkpoints.latest_step()
        stopped = f"stopped after step {self._trained:,}"
        if not saved:
            return f"{stopped}; nothing was saved yet, this run will begin anew"
        return f"{stopped}; the same command goes on from step {saved:,}"

    def _finish(self) -> tuple[int, dict[str, Any]]:
        """The step whose weights are the result, and how good they are.

        With patience those are the best of the run, else the last.
        """
        step, config = self._trained, self._job.config
        self._checkpoints.finish()  # results are written of weights that are there
        if config.eval.patience:
            step = self._checkpoints.best_step()
        if step != self._trained:
            self._log.say(f"the best by {config.eval.metric} is step {step}, taken")
            self._state = self._checkpoints.restore(step, self._shapes)
        results = self._results
        if results is None or step != self._trained or config.eval.split:
            results = self._evaluate("eval")
        return step, results

    def _is_over(self) -> bool:
        return watch.is_over(self._scores, self._job.config.eval.patience)

    def _train_stage(self, stage: progressive.Stage) -> None:
        first_step = max(stage.first_step, self._start)
        if stage is self._coming[0]:
            self._log.say(f"compiling the training step for {stage.image_size} px")
        with self._notice.waiting(first_step):
            ready = self._prepared.take()
        (train_step, flops), compile_seconds, (batches, on_device) = ready
        self._opened(batches)
        strengths = {k: np.float32(v) for k, v in stage.strengths.items()}
        del strengths["randaugment"]  # the data pipeline's
        self._log.start_stage(stage, first_step, flops)
        self._dog.beat(first_step)
        steps = range(first_step, stage.last_step)
        for step, batch in zip(steps, self._log.batches(on_device), strict=True):
            strengths["learning_rate"] = np.float32(self._job.learning_rate(step))
            self._profiler.before(step)
            self._state, sums = train_step(self._state, batch, strengths)
            self._profiler.after(step, sums)
            self._log.add(stage, sums)
            self._prepared.watch(stage.last_step - step - 1)
            self._trained = step + 1
            self._do_what_is_due(stage, step + 1, batches.skipped_indices)
            self._dog.beat(step + 1)
            if self._is_over():
                break
        self._dog.rest()
        batches.close()
        notes = self._notes["stages"][stage.index]
        notes["compile_seconds"] = round(compile_seconds, 2)
        notes |= self._log.finish_stage()
        _keep_skipped(notes, processes.count_distinct(batches.skipped_indices))
        self._folder.write_json("stages.json", self._notes)

    def _do_what_is_due(
        self, stage: progressive.Stage, done: int, skipped: Sequence[int]
    ) -> None:
        """Writes, evaluates and saves as the config says, `done` steps being done.

        Raises:
            PreemptedError: the run is to stop, and has been saved.
            StoppedError: a checkpoint could not be saved.
        """
        self._checkpoints.check()
        stops = done < self._job.stages[-1].last_step and self._notice.reached(done)
        due = jobs.due(self._job, stage, done, stops=stops)
        if due.write:
            rate = self._job.learning_rate(done - 1)
            count = processes.count_distinct(skipped)
            saved = self._checkpoints.latest_step()
            self._log.write_train(stage, done, rate, count, saved=saved)
        score = None
        # There may be seconds left, but with patience every score counts.
        if due.evaluate and (not stops or self._job.config.eval.patience):
            score = self._watch(stage, done)
        if due.save:
            meta = {**self._meta, "scores": list(self._scores)}
            self._checkpoints.save(self._state, done, meta, score=score)
        if stops:
            raise errors.PreemptedError(f"stopped after step {done}, which is saved")

    def _watch(self, stage: progressive.Stage, done: int) -> float:
        """Evaluates while training; returns the metric that decides what is best."""
        config = self._job.config
        split = "watch" if config.eval.split else "eval"
        results = self._evaluate(split)
        self._results = results
        name = config.eval.split or "test"
        self._log.write_eval(stage, done, results, config.eval.image_size, name)
        self._scores.append(watch.score(results, config.eval.metric))
        return self._scores[-1]

    def _evaluate(self, split: str) -> dict[str, Any]:
        self._dog.rest()
        eval_step, weights = self._prepared.eval_step(), _weights(self._state)
        config, mesh = self._job.config, self._job.mesh
        return evaluate.evaluate(eval_step, weights, config, mesh, split=split)


def _create_state(job: jobs.Job) -> states.TrainState:
    """Returns the state before the first step, laid out on the mesh."""
    everywhere = sharding.replicated(job.mesh)
    size = job.stages[0].image_size
    state = jax.jit(
        lambda: states.create_state(job.model, job.optimizer, job.config, size),
        out_shardings=everywhere,
    )()
    if job.weights is None:
        return state
    return initial.start_from(state, job.weights, everywhere)


def _coming(job: jobs.Job, start: int) -> list[progressive.Stage]:
    return [stage for stage in job.stages if stage.last_step > start]


def _prepare_stages(
    job: jobs.Job, start: int, abstract_state, coming: list[progressive.Stage]
) -> ahead.Prepared:
    """The stages to come, from step `start` on, made ready one ahead of the loop."""
    config, mesh = job.config, job.mesh

    def compile_step(stage: progressive.Stage) -> tuple[Any, float]:
        program = programs.compile_train_step(
            job.model,
            job.optimizer,
            config,
            mesh,
            image_size=stage.image_size,
            batch_size=stage.batch_size,
        )
        return program, programs.count_flops(program)

    def open_data(stage: progressive.Stage) -> tuple[pipeline.Batches, Iterator[Any]]:
        batches = pipeline.make_train_data(
            config,
            stage,
            first_step=max(stage.first_step, start),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        on_device = evaluate.prefetch_to_mesh(batches, mesh)
        first = next(on_device)  # starts the pipeline
        return batches, itertools.chain([first], on_device)

    return ahead.Prepared(
        coming,
        compile_step=compile_step,
        open_data=open_data,
        compile_eval_step=lambda: evaluate.compile_eval_step(
            job.model, config, mesh, _weights(abstract_state)
        ),
        early=config.progressive.prepare_ahead,
    )


def _weights(state) -> dict[str, Any]:
    """The two sets of weights that every evaluation compares."""
    raw = {"params": state.params, "batch_stats": state.batch_stats}
    return {"ema": state.ema, "raw": raw}


def _begin_notes(job: jobs.Job, folder, start: int, state) -> dict[str, Any]:
    """stages.json as far as it is known, with what an earlier start measured.

    Lines of metrics.jsonl after step `start` are dropped: those steps come again.
    """
    folder.drop_metrics_after(start)
    notes = folder.read_json("stages.json")
    if notes is None:
        params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        notes = {**job.table, **dataclasses.asdict(job.info), "params": params}
        folder.write_json("stages.json", notes)
    for line in folder.metrics():
        if "skipped" in line:
            _keep_skipped(notes["stages"][line["stage"]], line["skipped"])
    return notes


def _keep_skipped(stage: dict[str, Any], skipped: int) -> None:
    """Notes corrupt pictures of a stage: those met before a restart count on.

    Which of them were met again is not known, so the higher number is kept.
    """
    stage["skipped"] = max(stage.get("skipped", 0), skipped)


def _summary(job: jobs.Job, notes: dict[str, Any], folder, start: int) -> str:
    device = job.mesh.devices.flat[0]
    begin = f"resuming after step {start:,}" if start else f"starting {job.origin},"
    return (
        f"{job.config.model.name}, {notes['params']:,} parameters, on "
        f"{job.mesh.devices.size} x {device.device_kind}; "
        f"{job.info.num_train_images:,} training and {job.info.num_eval_images:,} test "
        f"images, {job.info.num_classes} classes; {begin} in {folder.path}"
    )


def _write_results(folder, results, config: ConfigDict) -> dict[str, Any]:
    """Writes eval.json and confusion.npy; returns the former's content."""
    confusion = results["ema"].get("confusion")
    if confusion is not None:
        buffer = io.BytesIO()
        np.save(buffer, confusion)
        folder.write_bytes("confusion.npy", buffer.getvalue())
    summary = {
        name: {k: v for k, v in results[name].items() if k != "confusion"}
        for name in ("ema", "raw")
    }
    summary |= {
        **{key: results[key] for key in ("step", "trained_steps", "train_skipped")},
        "image_size": config.eval.image_size,
        "wall_seconds": round(folder.wall_seconds, 1),
        "devices": jax.device_count(),
    }
    folder.write_json("eval.json", summary)
    return summary

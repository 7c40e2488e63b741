"""The loop: config -> stages -> (per stage) data, program, steps -> checkpoint."""

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import (
    check,
    checkpoint,
    data,
    errors,
    evaluate,
    logbook,
    models,
    optim,
    plan,
    progressive,
    run_folder,
    sharding,
)
from ev2 import state as states
from ev2 import step as steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """A run as decided before anything is compiled or written."""

    config: ConfigDict
    mesh: Mesh
    info: data.Info
    table: dict[str, Any]
    stages: tuple[progressive.Stage, ...]
    learning_rate: Callable[[int], float]
    model: models.Model
    optimizer: optax.GradientTransformationExtraArgs
    initial: dict[str, Any] | None  # weights to start from


def train_and_evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains through all stages, resuming by itself, and evaluates.

    Everything in `config` is checked before anything is compiled or written. A run
    that was stopped at any moment goes on from its newest checkpoint and ends in the
    same parameters, bit for bit.

    Args:
      config: see configs/defaults.py.
      workdir: folder of the run; see the README for what is written there.

    Returns:
      The content of `eval.json`.

    Raises:
      InputError: for a bad config, unreachable data, or a folder that holds another
        run.
      FloatingPointError: if the loss is not finite; names the steps.
    """
    job = _prepare(config, workdir)
    writes = jax.process_index() == 0
    with contextlib.ExitStack() as stack:  # closed on every way out, in reverse order

        def opened(thing):
            return stack.enter_context(contextlib.closing(thing))

        folder = opened(run_folder.RunFolder(workdir, config, writes=writes))
        checkpoints = opened(
            checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep)
        )
        start = checkpoints.latest_step() or 0
        images = job.info.num_train_images
        log = opened(logbook.Logbook(folder, job.stages, images, first_step=start))
        results = _train(job, folder, checkpoints, log, start, opened)
        return _write_results(folder, results, job.stages[-1].last_step, config)


def _prepare(config: ConfigDict, workdir: str) -> _Job:
    """Checks the whole config and returns what it means."""
    table = plan.make_plan(config)  # checks the config's values
    data.check(config)
    mesh = sharding.make_mesh()
    info = data.describe(config)
    stages = progressive.make_stages(config, info.num_train_images)
    _check_batches(config, stages, mesh)
    model = models.create_model(
        config.model.name,
        num_classes=info.num_classes,
        dtype=config.model.dtype,
        bn_momentum=config.model.bn_momentum,
        bn_group_images=config.model.bn_group_images,
        blocks=tuple(config.model.blocks),
        padding=config.model.padding,
        remat=config.model.remat,
    )
    initial = None
    run_folder.refuse_other_run(workdir, config, dataclasses.asdict(info))
    if config.init.checkpoint and not checkpoint.exists(workdir):
        initial = checkpoint.load_weights_for(model, config.init.checkpoint)
    return _Job(
        config=config,
        mesh=mesh,
        info=info,
        table=table,
        stages=stages,
        learning_rate=optim.make_learning_rate(config, stages, info.num_train_images),
        model=model,
        optimizer=optim.make_optimizer(config),
        initial=initial,
    )


def _train(
    job: _Job,
    folder: run_folder.RunFolder,
    checkpoints: checkpoint.Checkpoints,
    log: logbook.Logbook,
    start: int,
    opened: Callable[[Any], Any],
) -> dict[str, Any]:
    """The loop, from step `start` on. Returns the last evaluation.

    `opened` sees to closing.
    """
    config, mesh = job.config, job.mesh
    programs = _Programs(job)
    if start:
        state = checkpoints.restore(start, programs.abstract_state)
    else:
        state = programs.create_state()
    notes = _begin_notes(job, folder, start, state)
    log.say(plan.format_table(job.table))
    log.say(_summary(job, notes, folder, start))
    meta = checkpoint.make_meta(config, job.model, job.info.class_names)
    eval_step = evaluate.make_compiled_eval_step(job.model, config, mesh)
    results = None

    for stage in [s for s in job.stages if s.last_step > start]:
        first = max(stage.first_step, start)
        train_step, compile_seconds = programs.train_step(stage)
        batches = opened(_make_batches(config, stage, first))
        on_device = log.batches(evaluate.prefetch_to_mesh(batches, mesh))
        strengths = {k: np.float32(v) for k, v in stage.strengths.items()}
        del strengths["randaugment"]  # the data pipeline's
        log.start_stage()
        for step, batch in zip(range(first, stage.last_step), on_device, strict=True):
            rate = job.learning_rate(step)
            strengths["learning_rate"] = np.float32(rate)
            state, sums = train_step(state, batch, strengths)
            log.add(stage, sums)
            done = step + 1
            due = _due(job, stage, done)
            if due.write:
                log.write_train(stage, done, rate, batches.skipped)
            if due.evaluate:
                results = evaluate.evaluate(eval_step, _weights(state), config, mesh)
                log.write_eval(stage, done, results, config.eval.image_size)
            if due.save:
                top1 = results["ema"]["top1"] if due.evaluate and results else None
                checkpoints.save(state, done, meta, ema_top1=top1)
        batches.close()
        notes["stages"][stage.index] |= {
            "compile_seconds": round(compile_seconds, 2),
            **log.finish_stage(),
            "skipped": batches.skipped,
        }
        folder.write_json("stages.json", notes)

    if results is None:  # the run was complete but for its results
        results = evaluate.evaluate(eval_step, _weights(state), config, mesh)
    return results


def _make_batches(config: ConfigDict, stage: progressive.Stage, first_step: int):
    """This process's share of the batches of `stage`."""
    return data.make_train_data(
        config,
        stage,
        first_step=first_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


class _Programs:
    """The compiled programs of a run: one training step per image and batch size."""

    def __init__(self, job: _Job):
        self._job = job
        everywhere = sharding.replicated(job.mesh)
        size = job.stages[0].image_size
        self._create = jax.jit(
            lambda: states.create_state(job.model, job.optimizer, job.config, size),
            out_shardings=everywhere,
        )
        self._step = jax.jit(
            steps.make_train_step(job.model, job.optimizer, job.config),
            in_shardings=(everywhere, sharding.split_by_image(job.mesh), everywhere),
            out_shardings=everywhere,
            donate_argnums=0,
        )
        self._compiled: dict[tuple[int, int], Any] = {}
        # Shapes, dtypes and sharding of the state.
        self.abstract_state = sharding.abstract(job.mesh, jax.eval_shape(self._create))

    def create_state(self) -> states.TrainState:
        """Returns the state before the first step, laid out on the mesh."""
        state = self._create()
        if self._job.initial is None:
            return state
        everywhere = sharding.replicated(self._job.mesh)
        variables = jax.device_put(self._job.initial, everywhere)
        ema = jax.tree.map(jax.numpy.copy, variables)
        return dataclasses.replace(state, **variables, ema=ema)

    def train_step(self, stage: progressive.Stage) -> tuple[Any, float]:
        """Returns the program of the stage and the seconds it took to compile."""
        key = (stage.image_size, stage.batch_size)
        started = time.monotonic()
        if key not in self._compiled:
            names = ("learning_rate", "dropout", "drop_path", "mixup", "cutmix")
            self._compiled[key] = self._step.lower(
                self.abstract_state,
                sharding.abstract_batch(self._job.mesh, *key),
                {name: jax.ShapeDtypeStruct((), np.float32) for name in names},
            ).compile()
        return self._compiled[key], time.monotonic() - started


def _check_batches(config: ConfigDict, stages, mesh: Mesh) -> None:
    """Refuses here what would otherwise fail after a long compilation."""
    group = config.loss.mix_group_images if check.mixes(config) else 0
    divisors = (
        ("batch_size", mesh.devices.size, "devices"),
        ("model.bn_group_images", config.model.bn_group_images, "images per group"),
        ("loss.mix_group_images", group, "images per group"),
    )
    for batch_size in {stage.batch_size for stage in stages}:
        for key, divisor, unit in divisors:
            if divisor and batch_size % divisor:
                near = max(batch_size // divisor, 1) * divisor
                raise errors.InputError(
                    f"{key}: a global batch of {batch_size} images does not divide by "
                    f"{divisor} {unit}; {near} does"
                )


def _weights(state) -> dict[str, Any]:
    """The two sets of weights that every evaluation compares."""
    raw = {"params": state.params, "batch_stats": state.batch_stats}
    return {"ema": state.ema, "raw": raw}


class _Due(NamedTuple):
    """What is to be done after a step."""

    write: bool
    evaluate: bool
    save: bool


def _due(job: _Job, stage: progressive.Stage, done: int) -> _Due:
    """What is due when `done` steps are done; nothing is saved unwritten.

    Writing looks at the losses, so no checkpoint holds weights that are not finite.
    """

    def every(steps: int) -> bool:
        return steps > 0 and done % steps == 0

    evaluates = done == stage.last_step or _crosses_epochs(job, stage, done)
    saves = evaluates or every(job.config.checkpoint.every_steps)
    return _Due(saves or every(job.config.log.every_steps), evaluates, saves)


def _crosses_epochs(job: _Job, stage: progressive.Stage, done: int) -> bool:
    """Whether the step before `done` passed a multiple of `eval.every_epochs`."""
    interval = job.config.eval.every_epochs * job.info.num_train_images
    if interval <= 0:
        return False
    before, after = stage.images_seen(done - 1), stage.images_seen(done)
    return before // interval < after // interval


def _begin_notes(job: _Job, folder, start: int, state) -> dict[str, Any]:
    """stages.json as far as it is known, with what an earlier start measured.

    Lines of metrics.jsonl after step `start` are dropped: those steps come again.
    """
    folder.drop_metrics_after(start)
    notes = folder.read_json("stages.json")
    if notes is None:
        params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        notes = {**job.table, **dataclasses.asdict(job.info), "params": params}
        folder.write_json("stages.json", notes)
    return notes


def _summary(job: _Job, notes: dict[str, Any], folder, start: int) -> str:
    device = job.mesh.devices.flat[0]
    begin = f"resuming after step {start:,}" if start else "starting"
    return (
        f"{job.config.model.name}, {notes['params']:,} parameters, on "
        f"{job.mesh.devices.size} x {device.device_kind}; "
        f"{job.info.num_train_images:,} training and {job.info.num_eval_images:,} test "
        f"images, {job.info.num_classes} classes; {begin} in {folder.path}"
    )


def _write_results(folder, results, step: int, config: ConfigDict) -> dict[str, Any]:
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
        "step": step,
        "image_size": config.eval.image_size,
        "wall_seconds": round(folder.wall_seconds, 1),
    }
    folder.write_json("eval.json", summary)
    return summary

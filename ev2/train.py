"""The loop: config -> stages -> (per stage) data, program, steps -> checkpoint."""

import dataclasses
import io
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import (
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
    mesh = sharding.make_mesh()
    info = data.describe(config)
    table = plan.make_plan(config)
    stages = progressive.make_stages(config, info.num_train_images)
    _check(config, stages, mesh)
    learning_rate = optim.make_learning_rate(config, stages, info.num_train_images)
    model = models.create_model(
        config.model.name,
        num_classes=info.num_classes,
        dtype=config.model.dtype,
        bn_momentum=config.model.bn_momentum,
        bn_group_images=config.model.bn_group_images,
        blocks=tuple(config.model.blocks),
    )
    optimizer = optim.make_optimizer(config)
    initial = _initial_weights(config, model)
    is_first = jax.process_index() == 0

    folder = run_folder.RunFolder(workdir, config, writes=is_first)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep)
    meta = checkpoint.make_meta(config, model, info.class_names)
    create = jax.jit(
        lambda: states.create_state(model, optimizer, config, stages[0].image_size),
        out_shardings=sharding.replicated(mesh),
    )
    abstract_state = sharding.abstract(mesh, jax.eval_shape(create))
    start = checkpoints.latest_step() or 0
    if start:
        state = checkpoints.restore(abstract_state)
    else:
        state = _with_weights(create(), initial, mesh)
    folder.drop_metrics_after(start)
    notes = _stage_notes(folder, table, info, state)
    log = logbook.Logbook(
        folder, stages, info.num_train_images, first_step=start, writes=is_first
    )
    log.say(plan.format_table(table))
    log.say(_summary(config, notes, mesh, workdir, start))
    programs = _Programs(model, optimizer, config, mesh, abstract_state)
    eval_step = evaluate.make_compiled_eval_step(model, config, mesh)
    results = None

    for stage in [s for s in stages if s.last_step > start]:
        first = max(stage.first_step, start)
        train_step, compile_seconds = programs.get(stage)
        batches = data.make_train_data(
            config,
            stage,
            first_step=first,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        on_device = log.batches(evaluate.prefetch_to_mesh(batches, mesh))
        strengths = {k: np.float32(v) for k, v in stage.strengths.items()}
        del strengths["randaugment"]  # the data pipeline's
        log.start_stage()
        for step, batch in zip(range(first, stage.last_step), on_device, strict=True):
            strengths["learning_rate"] = np.float32(learning_rate(step))
            state, sums = train_step(state, batch, strengths)
            log.add(stage, sums)
            done = step + 1
            evaluates = done == stage.last_step or _crosses_epochs(
                config.eval.every_epochs * info.num_train_images, stage, done
            )
            saves = evaluates or _every(config.checkpoint.every_steps, done)
            if saves or _every(config.log.every_steps, done):
                log.write_train(stage, done, learning_rate(step), batches.skipped)
            if evaluates:
                results = evaluate.evaluate(eval_step, _weights(state), config, mesh)
                log.write_eval(stage, done, results, config.eval.image_size)
            if saves:
                top1 = results["ema"]["top1"] if evaluates and results else None
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
    checkpoints.close()
    log.close()
    summary = _write_results(folder, results, stages[-1].last_step, config)
    folder.close()
    return summary


class _Programs:
    """The compiled training step of each image and batch size, made once each."""

    def __init__(self, model, optimizer, config, mesh, abstract_state):
        everywhere = sharding.replicated(mesh)
        self._step = jax.jit(
            steps.make_train_step(model, optimizer, config),
            in_shardings=(everywhere, sharding.split_by_image(mesh), everywhere),
            out_shardings=everywhere,
            donate_argnums=0,
        )
        self._mesh = mesh
        self._state = abstract_state
        self._compiled: dict[tuple[int, int], Any] = {}

    def get(self, stage: progressive.Stage) -> tuple[Any, float]:
        """Returns the program of the stage and the seconds it took to compile."""
        key = (stage.image_size, stage.batch_size)
        started = time.monotonic()
        if key not in self._compiled:
            names = ("learning_rate", "dropout", "drop_path", "mixup", "cutmix")
            self._compiled[key] = self._step.lower(
                self._state,
                sharding.abstract_batch(self._mesh, *key),
                {name: jax.ShapeDtypeStruct((), np.float32) for name in names},
            ).compile()
        return self._compiled[key], time.monotonic() - started


def _check(config: ConfigDict, stages, mesh: Mesh) -> None:
    """Refuses here what would otherwise fail after a long compilation."""
    mixes = max(config.progressive.mixup + config.progressive.cutmix) > 0
    group = config.loss.mix_group_images if mixes else 0
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
    ranges = (
        ("loss.label_smoothing", config.loss.label_smoothing, 0, 1),
        ("loss.mix_group_images", config.loss.mix_group_images % 2, 0, 1),
        ("ema.decay", config.ema.decay, 0, 1),
    )
    for key, value, low, high in ranges:
        if not low <= value < high:
            raise errors.InputError(f"{key}: {value} is not in [{low}, {high})")


def _initial_weights(config: ConfigDict, model: models.Model) -> dict[str, Any] | None:
    if not config.init.checkpoint:
        return None
    return checkpoint.load_weights_for(model, config.init.checkpoint)


def _with_weights(state, variables, mesh: Mesh):
    """Returns `state` starting from `variables`, if there are any."""
    if variables is None:
        return state
    variables = jax.device_put(variables, sharding.replicated(mesh))
    ema = jax.tree.map(jax.numpy.copy, variables)
    return dataclasses.replace(state, **variables, ema=ema)


def _weights(state) -> dict[str, Any]:
    """The two sets of weights that every evaluation compares."""
    raw = {"params": state.params, "batch_stats": state.batch_stats}
    return {"ema": state.ema, "raw": raw}


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _crosses_epochs(interval_images: float, stage, done: int) -> bool:
    """Whether the step before `done` passed a multiple of `interval_images`."""
    if interval_images <= 0:
        return False
    before, after = stage.images_seen(done - 1), stage.images_seen(done)
    return before // interval_images < after // interval_images


def _stage_notes(folder, table, info, state) -> dict[str, Any]:
    """stages.json as far as it is known, with what an earlier start measured."""
    notes = folder.read_json("stages.json")
    if notes is None:
        sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
        notes = {**table, **dataclasses.asdict(info), "params": sum(sizes)}
        folder.write_json("stages.json", notes)
    return notes


def _summary(config, notes, mesh: Mesh, workdir: str, start: int) -> str:
    device = mesh.devices.flat[0]
    begin = f"resuming after step {start:,}" if start else "starting"
    return (
        f"{config.model.name}, {notes['params']:,} parameters, on {mesh.devices.size} "
        f"x {device.device_kind}; {notes['num_train_images']:,} training and "
        f"{notes['num_eval_images']:,} test images, {notes['num_classes']} classes; "
        f"{begin} in {workdir}"
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

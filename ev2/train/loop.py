"""The training loop: stages, steps, logging, evaluation, checkpoints, in this order."""

import contextlib
import faulthandler
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from ev2 import errors
from ev2.checkpoint import integrity, manager, pretrained
from ev2.evaluation import evaluate
from ev2.train import early_stopping, multihost, plan, preemption, setup
from ev2.train.logger import Logger
from ev2.train.next_stage import NextStage
from ev2.train.workdir import Workdir

PROFILE_FOLDER = "profile"  # in the workdir; read by xprof, TensorBoard and Perfetto


def train_and_evaluate(
    config: ConfigDict, workdir: str, *, profile: range = range(0)
) -> dict[str, Any]:
    """Trains through all stages, resuming by itself, and evaluates.

    Everything in `config` is checked before anything is compiled or written. A run
    that was stopped at any moment resumes from its newest checkpoint and ends in the
    same parameters, bit for bit.

    Args:
        config: see `ev2.config`.
        workdir: folder of the run; see `train.workdir` for the files.
        profile: steps that JAX's profiler records, into `workdir/profile`.

    Returns:
        The content of `eval.json`.

    Raises:
        InputError: for a bad config, unreachable data, or a folder that holds another
            run.
        FloatingPointError: the loss is not finite; names the steps.
        PreemptedError: SIGTERM came; the state is saved.
        StoppedError: a checkpoint or a file could not be written.
    """
    with multihost.together():
        run = setup.set_up(config, workdir)
        setup.check_profile(profile, run.num_steps)
    multihost.check_same("config", f"{run.config} {run.info}")
    config, is_first = run.config, jax.process_index() == 0
    keep = {"keep": config.checkpoint.keep, "keep_best": config.checkpoint.keep_best}

    with contextlib.ExitStack() as stack:  # closed on every way out, in reverse order
        listener = stack.enter_context(preemption.Listener())
        with multihost.together():
            folder = stack.enter_context(Workdir(workdir, config, writes=is_first))
            if is_first:
                integrity.quarantine(workdir)
        checkpoints = stack.enter_context(
            contextlib.closing(manager.Checkpoints(workdir, **keep))
        )
        stack.enter_context(multihost.end_on_lost_process())

        start = done = multihost.from_first(checkpoints.latest_step() or 0)
        scores = checkpoints.read_metadata(start).get("scores", []) if start else []
        is_over = early_stopping.is_over(scores, config.eval.patience)
        profile = range(max(profile.start, start), profile.stop if is_first else 0)
        left = [s for s in run.stages if s.last_step > start and not is_over]
        next_stage = NextStage(
            run, left, start=start, early=config.progressive.prepare_ahead
        )
        if start:
            state = checkpoints.restore(start, run.abstract_state)
        else:
            state = run.create_state()
        num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        classes = run.info.class_names
        meta = pretrained.make_metadata(run.model, classes, config=config)
        logger = stack.enter_context(
            Logger(folder, run, start=start, num_params=num_params)
        )
        logger.print(plan.format_table(run.plan))
        logger.print(_summarize(run, start, num_params))

        def evaluate_state(split: str) -> dict[str, Any]:
            faulthandler.cancel_dump_traceback_later()  # evaluating may take long
            eval_step = next_stage.eval_step()
            return evaluate.evaluate(
                eval_step, state.weights, config, run.mesh, split=split
            )

        def is_due(every_steps: int) -> bool:
            return every_steps > 0 and done % every_steps == 0

        results: dict[str, Any] | None = None  # of the last evaluation
        stages = stack.enter_context(contextlib.closing(next_stage.stages(listener)))
        stack.callback(faulthandler.cancel_dump_traceback_later)
        profiler = stack.enter_context(contextlib.ExitStack())
        try:
            for ready in stages:
                stage, train_step = ready.stage, ready.train_step
                steps = range(ready.first_step, stage.last_step)
                batches = logger.start_stage(ready)
                _expect_step_within(config.stall_seconds)
                for step, batch in zip(steps, batches, strict=True):
                    if profile and step == profile.start:
                        jax.profiler.start_trace(f"{workdir}/{PROFILE_FOLDER}")
                        profiler.callback(jax.profiler.stop_trace)
                    state, sums = train_step(
                        state, batch, run.hyperparameters(stage, step)
                    )
                    if profile and step + 1 == profile.stop:
                        jax.block_until_ready(sums)
                        profiler.close()
                    done = step + 1
                    logger.add(stage, sums)
                    next_stage.check(stage.last_step - done)
                    checkpoints.check()

                    # Nothing is saved unwritten: writing refuses losses that are not
                    # finite, so no checkpoint holds such weights.
                    stops = done < run.num_steps and listener.reached(done)
                    evaluates = run.evaluates_after(stage, done)
                    saves = evaluates or stops or is_due(config.checkpoint.every_steps)
                    if saves or is_due(config.log.every_steps):
                        logger.write_train(stage, done, saved=checkpoints.latest_step())
                    score = None
                    # There may be seconds left, but with patience every score counts.
                    if evaluates and (not stops or config.eval.patience):
                        split = config.eval.split or "test"
                        results = evaluate_state("watch" if split != "test" else "eval")
                        logger.write_eval(stage, done, results, split)
                        score = early_stopping.score(results, config.eval.metric)
                        scores.append(score)
                    if saves:
                        metadata = {**meta, "scores": list(scores)}
                        checkpoints.save(state, done, metadata, score=score)
                    if stops:
                        message = f"stopped after step {done}, which is saved"
                        raise errors.PreemptedError(message)
                    is_over = early_stopping.is_over(scores, config.eval.patience)
                    if is_over:
                        break
                    _expect_step_within(config.stall_seconds)
                faulthandler.cancel_dump_traceback_later()  # compiling may take long
                logger.finish_stage(stage, done)
                if is_over:
                    break

            profiler.close()
            checkpoints.finish()  # the result is of weights that are saved
            best = checkpoints.best_step() if config.eval.patience else done
            if best != done:
                logger.print(f"taking step {best}, the best by {config.eval.metric}")
                state = checkpoints.restore(best, run.abstract_state)
            if results is None or best != done or config.eval.split:
                results = evaluate_state("eval")
        except KeyboardInterrupt as error:
            message = _explain_stop(done, checkpoints.latest_step())
            raise KeyboardInterrupt(message) from error
        result = {
            name: {k: v for k, v in results[name].items() if k != "confusion"}
            for name in ("ema", "raw")
        } | {
            "step": best,
            "trained_steps": done,
            "train_skipped": logger.train_skipped,
            "image_size": config.eval.image_size,
            "wall_seconds": round(folder.wall_seconds, 1),
            "devices": jax.device_count(),
        }
        folder.write_result(result, results["ema"].get("confusion"))
        return result


def _expect_step_within(seconds: float) -> None:
    """Ends the process with the stacks of all threads if no step follows; 0 = never.

    Nothing is closed then, for that could wait for whatever stands still.
    """
    if seconds:
        stderr = (
            sys.__stderr__ or sys.stderr
        )  # a file of the system, whatever replaces sys.stderr
        faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)


def _summarize(run: setup.Experiment, start: int, num_params: int) -> str:
    device = run.mesh.devices.flat[0]
    begin = f"resuming after step {start:,}" if start else f"starting {run.origin},"
    return (
        f"{run.config.model.name}, {num_params:,} parameters, on "
        f"{run.mesh.devices.size} x {device.device_kind}; "
        f"{run.info.num_train_images:,} training and {run.info.num_eval_images:,} test "
        f"images, {run.info.num_classes} classes; {begin} in {run.workdir}"
    )


def _explain_stop(done: int, saved: int | None) -> str:
    """The message of Ctrl-C: where the run stands, and where it resumes."""
    stopped = f"stopped after step {done:,}"
    if not saved:
        return f"{stopped}; nothing was saved yet, the same command starts over"
    return f"{stopped}; the same command resumes from step {saved:,}"

"""A run as decided before anything is compiled or written, and what is due when."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import progressive, sharding
from ev2.data import pipeline, sources
from ev2.models.model import Model
from ev2.train import compile as programs
from ev2.train import initialize as initial
from ev2.train import optimizer as optim
from ev2.train import plan
from ev2.train import workdir as run_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a config means: data, stages, network, optimizer, first weights."""

    config: ConfigDict
    mesh: Mesh
    info: sources.DatasetInfo
    table: dict[str, Any]
    stages: tuple[progressive.Stage, ...]
    learning_rate: Callable[[int], float]
    model: Model
    optimizer: optax.GradientTransformationExtraArgs
    weights: dict[str, Any] | None  # to start from; see `initial.weights_for`
    origin: str  # what they are


def check(
    config: ConfigDict, workdir: str, *, expected: dict[str, Any] | None = None
) -> tuple[ConfigDict, dict[str, Any]]:
    """Checks a run as `train.train_and_evaluate` does, and writes nothing.

    Args:
      config: the run's.
      workdir: its folder.
      expected: keys "mean", "std" and "interpolation" of `init.checkpoint`, where that
        is still to be trained; it is then not read.

    Returns:
      The config with nothing left to a checkpoint; the plan (see `plan.make_plan`).

    Raises:
      InputError: as `train.train_and_evaluate`.
    """
    if expected is None:
        job = prepare(config, workdir)
    else:
        table = plan.make_plan(config)
        job = _decide(initial.fill(config, expected), workdir, table)
    return job.config, job.table


def prepare(config: ConfigDict, workdir: str) -> Job:
    """Checks the whole config and returns what it means."""
    table = plan.make_plan(config)  # checks the config's values
    config, source = initial.open_source(config, workdir)
    job = _decide(config, workdir, table)
    if source is None:
        return job
    names = job.info.class_names
    weights, origin = initial.weights_for(job.model, names, source)
    return dataclasses.replace(job, weights=weights, origin=origin)


def _decide(config: ConfigDict, workdir: str, table: dict[str, Any]) -> Job:
    """The run from random weights; `table` is its plan."""
    pipeline.check(config)
    mesh = sharding.make_mesh()
    info = sources.describe(config)
    stages = progressive.make_stages(config, info.num_train_images)
    batch_sizes = {stage.batch_size for stage in stages}
    programs.check_batches(config, batch_sizes, mesh.devices.size)
    model = programs.make_model(config, info.num_classes)
    run_folder.refuse_other_run(workdir, config, dataclasses.asdict(info))
    return Job(
        config=config,
        mesh=mesh,
        info=info,
        table=table,
        stages=stages,
        learning_rate=optim.make_learning_rate(config, stages, info.num_train_images),
        model=model,
        optimizer=optim.make_optimizer(config),
        weights=None,
        origin="from random weights",
    )


class Due(NamedTuple):
    """What is to be done after a step."""

    write: bool
    evaluate: bool
    save: bool


def due(job: Job, stage: progressive.Stage, done: int, *, stops: bool) -> Due:
    """What is due when `done` steps are done; nothing is saved unwritten.

    Writing looks at the losses, so no checkpoint holds weights that are not finite.
    """

    def every(steps: int) -> bool:
        return steps > 0 and done % steps == 0

    evaluates = done == stage.last_step or _crosses_epochs(job, stage, done)
    saves = evaluates or stops or every(job.config.checkpoint.every_steps)
    return Due(saves or every(job.config.log.every_steps), evaluates, saves)


def _crosses_epochs(job: Job, stage: progressive.Stage, done: int) -> bool:
    """Whether the step before `done` passed a multiple of `eval.every_epochs`."""
    interval = job.config.eval.every_epochs * job.info.num_train_images
    if interval <= 0:
        return False
    before, after = stage.images_seen(done - 1), stage.images_seen(done)
    return before // interval < after // interval

"""Everything about a run that is decided and checked before its first compilation."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import errors, progressive, sharding
from ev2.data import pipeline, sources
from ev2.evaluation import evaluate
from ev2.models.model import Model
from ev2.train import compile, initialize, plan, validate, workdir
from ev2.train import optimizer as optimizers
from ev2.train import state as states


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run as its config, its data and this machine's devices determine it.

    Attributes:
        config: with nothing left to a checkpoint.
        workdir: the run's folder.
        mesh: the devices.
        info: counts and class names of the data.
        stages: contiguous from step 0.
        plan: the stages as `plan.tabulate_stages` gives them.
        learning_rate: a function of the step.
        model: the network.
        optimizer: takes the step's learning rate in `update`.
        initial_weights: trained weights to start from, None for random ones.
        origin: the initial weights in words.
    """

    config: ConfigDict
    workdir: str
    mesh: Mesh
    info: sources.DatasetInfo
    stages: tuple[progressive.Stage, ...]
    plan: dict[str, Any]
    learning_rate: Callable[[int], float]
    model: Model
    optimizer: optax.GradientTransformationExtraArgs
    initial_weights: dict[str, Any] | None = None
    origin: str = "from random weights"

    @property
    def num_steps(self) -> int:
        return self.stages[-1].last_step

    @functools.cached_property
    def abstract_state(self) -> states.TrainState:
        """Shapes, dtypes and sharding of the state."""
        return compile.abstract_state(
            self.model, self.optimizer, self.config, self.mesh
        )

    def create_state(self) -> states.TrainState:
        """Returns the state before the first step, laid out on the mesh."""
        replicated = sharding.replicated(self.mesh)
        size = self.stages[0].image_size
        state = jax.jit(
            lambda: states.create_state(self.model, self.optimizer, self.config, size),
            out_shardings=replicated,
        )()
        if self.initial_weights is None:
            return state
        return initialize.start_from(state, self.initial_weights, replicated)

    def compile_train_step(self, stage: progressive.Stage) -> jax.stages.Compiled:
        """Returns the compiled step of a stage's image size and batch size."""
        return compile.lower_train_step(
            self.model,
            self.optimizer,
            self.config,
            self.mesh,
            image_size=stage.image_size,
            batch_size=stage.batch_size,
        ).compile()

    def compile_eval_step(self) -> Callable:
        """Returns the compiled evaluation of a state's raw and EMA weights."""
        weights = self.abstract_state.weights
        return evaluate.compile_eval_step(self.model, self.config, self.mesh, weights)

    def open_train_data(self, stage: progressive.Stage, first_step: int) -> "TrainData":
        """Opens the batches of steps `first_step` to the end of `stage`."""
        batches = pipeline.make_train_data(
            self.config,
            stage,
            first_step=first_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return TrainData(batches, self.mesh)

    def hyperparameters(self, stage: progressive.Stage, step: int) -> dict[str, Any]:
        """Returns the scalars that the compiled step takes, float32."""
        values = {"learning_rate": self.learning_rate(step), **stage.strengths}
        return {name: np.float32(values[name]) for name in compile.HYPERPARAMETERS}

    def evaluates_after(self, stage: progressive.Stage, done: int) -> bool:
        """Returns True if an evaluation is due when `done` steps are done.

        That is at the end of a stage, and whenever the last step passed a multiple of
        `eval.every_epochs`.
        """
        if done == stage.last_step:
            return True
        interval = self.config.eval.every_epochs * self.info.num_train_images
        if interval <= 0:
            return False
        before, after = stage.images_seen(done - 1), stage.images_seen(done)
        return before // interval < after // interval


class TrainData:
    """Iterator over a stage's batches on the devices; the first one is read at once."""

    def __init__(self, batches: pipeline.Batches, mesh: Mesh):
        self._batches = batches
        on_devices = sharding.prefetch(batches, mesh)
        self._iterator = itertools.chain([next(on_devices)], on_devices)

    def __iter__(self):
        return self._iterator

    @property
    def skipped_indices(self) -> tuple[int, ...]:
        """Indices in the split of the corrupt images read so far."""
        return self._batches.skipped_indices

    def close(self) -> None:
        """Ends the background reading."""
        self._batches.close()


def set_up(config: ConfigDict, workdir_path: str) -> Experiment:
    """Checks a whole run and returns it; compiles and writes nothing.

    Raises:
        InputError: a bad config, unreachable data, no checkpoint to start from, or a
            folder that holds another run.
    """
    validate.check_config(config)
    config, checkpoint = initialize.open_checkpoint(config, workdir_path)
    experiment = _decide(config, workdir_path)
    if checkpoint is None:
        return experiment
    weights, origin = initialize.select_weights(
        experiment.model, experiment.info.class_names, checkpoint
    )
    return dataclasses.replace(experiment, initial_weights=weights, origin=origin)


def set_up_link(
    config: ConfigDict, workdir_path: str, preprocessing: dict[str, Any]
) -> Experiment:
    """Returns a run whose `init.checkpoint` is still to be trained.

    Args:
        config: the run's.
        workdir_path: its folder.
        preprocessing: keys "mean", "std" and "interpolation" of that checkpoint.

    Raises:
        InputError: as `set_up`.
    """
    validate.check_config(config)
    return _decide(initialize.fill(config, preprocessing), workdir_path)


def _decide(config: ConfigDict, workdir_path: str) -> Experiment:
    pipeline.open_splits(config)
    mesh = sharding.make_mesh()
    info = sources.describe(config)
    stages = progressive.make_stages(config, info.num_train_images)
    batch_sizes = {stage.batch_size for stage in stages}
    validate.check_batches(config, batch_sizes, mesh.devices.size)
    workdir.check_resumable(workdir_path, config, dataclasses.asdict(info))
    num_images = info.num_train_images
    learning_rate = optimizers.make_learning_rate(config, stages, num_images)
    return Experiment(
        config=config,
        workdir=workdir_path,
        mesh=mesh,
        info=info,
        stages=stages,
        plan=plan.tabulate_stages(
            config.model.name,
            stages,
            learning_rate,
            num_images,
            config.optimizer.warmup_epochs,
        ),
        learning_rate=learning_rate,
        model=compile.make_model(config, info.num_classes),
        optimizer=optimizers.make_optimizer(config),
    )


def check_profile(steps: range, num_steps: int) -> None:
    """Raises InputError if there are steps to profile that the run does not have."""
    if steps and steps.stop > num_steps:
        raise errors.InputError(
            f"profile: steps {steps.start} to {steps.stop}; the run has {num_steps}"
        )

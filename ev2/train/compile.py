"""Compiled training steps of a config, for devices here or for a TPU slice elsewhere.

One program serves one image size and batch size, whatever the strengths.
"""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import progressive, sharding
from ev2.models.model import Model, create_model
from ev2.train import state as states
from ev2.train import step as steps

# Scalars that the step takes beside state and batch, so that no change recompiles it.
HYPERPARAMETERS = (
    "learning_rate",
    *(strength.name for strength in progressive.STRENGTHS if strength.in_step),
)


def make_model(config: ConfigDict, num_classes: int) -> Model:
    """Returns the network of `config.model`."""
    return create_model(
        config.model.name,
        num_classes=num_classes,
        dtype=config.model.dtype,
        bn_momentum=config.model.bn_momentum,
        bn_group_images=config.model.bn_group_images,
        bn_frozen=config.init.freeze_bn or config.init.freeze == "backbone",
        blocks=tuple(config.model.blocks),
        padding=config.model.padding,
        remat=config.model.remat,
    )


def abstract_state(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    config: ConfigDict,
    mesh: Mesh,
) -> states.TrainState:
    """Returns the shapes, dtypes and sharding of the state; computes nothing."""
    return sharding.abstract(
        mesh,
        jax.eval_shape(
            lambda: states.create_state(model, optimizer, config, model.eval_image_size)
        ),
    )


def lower_train_step(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    config: ConfigDict,
    mesh: Mesh,
    *,
    image_size: int,
    batch_size: int,
) -> jax.stages.Lowered:
    """Returns the training step of `step.make_train_step`, traced for the mesh.

    It takes `(state, batch, hyperparameters)` and donates the state's memory. Needs no
    array on the devices, and may run in a thread of its own.

    Args:
        model: the network.
        optimizer: from `optimizer.make_optimizer`.
        config: what else the step reads.
        mesh: the devices; the state is replicated over them, the batch split.
        image_size: px.
        batch_size: global images.
    """
    replicated = sharding.replicated(mesh)
    step = jax.jit(
        steps.make_train_step(model, optimizer, config),
        in_shardings=(replicated, sharding.split_by_image(mesh), replicated),
        out_shardings=replicated,
        donate_argnums=0,
    )
    return step.lower(
        abstract_state(model, optimizer, config, mesh),
        sharding.abstract_batch(
            mesh, image_size, batch_size, max_labels=config.data.max_labels
        ),
        {name: jax.ShapeDtypeStruct((), np.float32) for name in HYPERPARAMETERS},
    )


def count_flops(program: Any) -> float:
    """Returns the FLOPs of a compiled program on one device; 0 where XLA has no count.

    XLA does not count kernels of its own libraries.
    """
    analysis = program.cost_analysis() or {}
    return max(float(analysis.get("flops", 0.0)), 0.0)

"""The network and the compiled training step that a config asks for.

One program serves one image size and batch size, whatever the strengths. The mesh may
be of devices that are here, or of a TPU slice that is not (see `ev2.tpu.compile`).
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ev2 import errors, sharding
from ev2.models.model import Model, create_model
from ev2.train import state as states
from ev2.train import step as steps
from ev2.train import validate as check

_STRENGTHS = ("learning_rate", "dropout", "drop_path", "mixup", "cutmix")


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


def compile_train_step(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    config: ConfigDict,
    mesh: Mesh,
    *,
    image_size: int,
    batch_size: int,
) -> jax.stages.Compiled:
    """Returns the step of `lower_train_step`, compiled.

    Needs no array on the devices, and may run in a thread of its own.
    """
    lowered = lower_train_step(
        model, optimizer, config, mesh, image_size=image_size, batch_size=batch_size
    )
    return lowered.compile()


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

    It takes `(state, batch, strengths)` and gives away the memory of the state.

    Args:
        model: the network.
        optimizer: from `optim.make_optimizer`.
        config: what else the step reads.
        mesh: the devices; the state is replicated over them, the batch split.
        image_size: px.
        batch_size: global images.
    """
    everywhere = sharding.replicated(mesh)
    step = jax.jit(
        steps.make_train_step(model, optimizer, config),
        in_shardings=(everywhere, sharding.split_by_image(mesh), everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    return step.lower(
        abstract_state(model, optimizer, config, mesh),
        sharding.abstract_batch(
            mesh, image_size, batch_size, max_labels=config.data.max_labels
        ),
        {name: jax.ShapeDtypeStruct((), np.float32) for name in _STRENGTHS},
    )


def count_flops(program: Any) -> float:
    """Floating-point operations of a compiled program on one device; 0 = not known.

    By XLA's count, which has none for kernels of its own libraries.
    """
    analysis = program.cost_analysis() or {}
    return max(float(analysis.get("flops", 0.0)), 0.0)


def check_batches(
    config: ConfigDict, batch_sizes: Iterable[int], num_devices: int
) -> None:
    """Refuses here what would otherwise fail after a long compilation.

    Raises:
        InputError: a global batch does not divide by the number of devices, or by the
            images that share statistics or partners.
    """
    group = config.loss.mix_group_images if check.mixes(config) else 0
    divisors = (
        ("batch_size", num_devices, "devices"),
        ("model.bn_group_images", config.model.bn_group_images, "images per group"),
        ("loss.mix_group_images", group, "images per group"),
    )
    for batch_size in sorted(set(batch_sizes)):
        for key, divisor, unit in divisors:
            if divisor and batch_size % divisor:
                near = max(batch_size // divisor, 1) * divisor
                raise errors.InputError(
                    f"{key}: a global batch of {batch_size} images does not divide by "
                    f"{divisor} {unit}; {near} does"
                )

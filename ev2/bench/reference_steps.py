"""Times training steps and inference of Keras on JAX, torchvision and timm.

Each case runs in a process of its own without TensorFlow. `python -m
ev2.bench.reference_steps` compiles the step of Keras for a TPU slice.
"""

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from ev2.train import timing

CLASSES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCase:
    """A network and setting to measure.

    Attributes:
        library: "ev2", "keras-jax", "torchvision" or "timm".
        network: name in the library.
        image_size: px.
        batch_size: images; on a slice per device.
        dtype: "float32" or "bfloat16".
    """

    library: str
    network: str
    image_size: int
    batch_size: int
    dtype: str


def make_row(
    images: int, train: Sequence[float], infer: Sequence[float]
) -> dict[str, Any]:
    """Summarizes seconds per call of training and of inference.

    Returns medians in images/s and milliseconds; "_spread" is the distance between the
    quartiles as a fraction of the median.
    """
    row: dict[str, Any] = {}
    for kind, seconds in (("train", train), ("infer", infer)):
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        row[f"{kind}_images_per_second"] = round(images / median, 2)
        row[f"{kind}_ms"] = round(1e3 * median, 2)
        row[f"{kind}_spread"] = round((high - low) / median, 4)
        row[f"{kind}_calls"] = len(seconds)
    return row


def time_reference(case: StepCase) -> dict[str, Any]:
    """Returns the figures of another library on one device of this machine."""
    return (_time_keras if case.library == "keras-jax" else _time_torch)(case)


def _make_keras(case: StepCase) -> tuple[Any, Any, tuple]:
    """Returns model, `step(state, images, labels) -> (state, loss)` and state.

    As in ev2: loss with smoothing and L2, RMSProp with momentum, EMA.
    """
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras
    from jax import numpy as jnp

    if case.dtype == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = getattr(keras.applications, case.network)(
        weights=None,
        classes=CLASSES,
        classifier_activation=None,
        input_shape=(case.image_size, case.image_size, 3),
        # Neither V1 nor ResNet can leave out preprocessing.
        **({"include_preprocessing": False} if "V2" in case.network else {}),
    )
    optimizer = keras.optimizers.RMSprop(1e-3, rho=0.9, momentum=0.9, epsilon=1e-3)
    optimizer.build(model.trainable_variables)
    variables = model.trainable_variables, model.non_trainable_variables
    weights, others, slots = (
        [variable.value for variable in group]
        for group in (*variables, optimizer.variables)
    )
    averages = jax.tree.map(jnp.copy, (weights, others))

    def loss_of(weights, others, images, labels):
        logits, others = model.stateless_call(weights, others, images, training=True)
        targets = 0.9 * jax.nn.one_hot(labels, CLASSES) + 0.1 / CLASSES
        logs = jax.nn.log_softmax(logits.astype(jnp.float32))
        l2 = sum(jnp.sum(jnp.square(w)) for w in weights if w.ndim > 1)
        return 5e-6 * l2 - jnp.mean(jnp.sum(targets * logs, axis=-1)), others

    def step(state, images, labels):
        weights, others, slots, averages = state
        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            weights, others, images, labels
        )
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        averages = jax.tree.map(
            lambda old, new: old + (1e-4 * (new - old)).astype(old.dtype),
            averages,
            (weights, others),
        )
        return (weights, others, slots, averages), loss

    return model, step, (weights, others, slots, averages)


def _time_keras(case: StepCase) -> dict[str, Any]:
    model, step, state = _make_keras(case)
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (case.batch_size, case.image_size, case.image_size, 3)
    images = jax.numpy.asarray(rng.standard_normal(shape, np.float32))
    labels = jax.numpy.asarray(rng.integers(0, CLASSES, case.batch_size))
    train = jax.jit(step, donate_argnums=0)

    @jax.jit
    def infer(weights, others, images):
        return model.stateless_call(weights, others, images, training=False)[0]

    def call():
        nonlocal state
        state, loss = train(state, images, labels)
        jax.block_until_ready(loss)

    seconds = timing.time_calls(call)
    weights, others = state[:2]

    def predict():
        jax.block_until_ready(infer(weights, others, images))

    return make_row(case.batch_size, seconds, timing.time_calls(predict))


def compile_keras(case: StepCase, slice_name: str) -> dict[str, Any]:
    """Compiles the step of Keras for a slice; the batch size is per device."""
    _, step, state = _make_keras(case)
    import jax
    from jax import numpy as jnp

    from ev2 import sharding
    from ev2.tpu import compile as tpu_compile
    from ev2.tpu import slices

    slice_ = slices.find(slice_name)
    mesh = sharding.make_mesh(tpu_compile.get_devices(slice_))
    split = sharding.split_by_image(mesh)
    images = case.batch_size * slice_.devices
    shape = (images, case.image_size, case.image_size, 3)
    started = time.monotonic()
    lowered = jax.jit(step, donate_argnums=0).lower(
        sharding.abstract(mesh, state),
        jax.ShapeDtypeStruct(shape, case.dtype, sharding=split),
        jax.ShapeDtypeStruct((images,), jnp.int32, sharding=split),
    )
    return tpu_compile.compile_lowered(
        lowered, slice_, images=case.batch_size, started=started
    )


def make_torch(library: str, network: str, num_classes: int) -> Any:
    """Returns a network of "timm" or "torchvision" with random weights."""
    if library == "timm":
        import timm

        return timm.create_model(network, num_classes=num_classes)
    import torchvision

    return torchvision.models.get_model(network, num_classes=num_classes)


def _time_torch(case: StepCase) -> dict[str, Any]:
    """Times PyTorch in channels_last, compiled on a GPU, in bfloat16 by autocast."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_torch(case.library, case.network, CLASSES)
    model = model.to(device, memory_format=torch.channels_last)
    run = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.RMSprop(
        model.parameters(), lr=1e-3, alpha=0.9, momentum=0.9, eps=1e-3
    )
    shape = (case.batch_size, 3, case.image_size, case.image_size)
    images = torch.randn(shape, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (case.batch_size,), device=device)
    cast = torch.autocast(
        device, dtype=torch.bfloat16, enabled=case.dtype == "bfloat16"
    )
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def train():
        optimizer.zero_grad(set_to_none=True)
        with cast:
            loss = torch.nn.functional.cross_entropy(
                run(images), labels, label_smoothing=0.1
            )
        loss.backward()
        optimizer.step()
        wait()

    def infer():
        with torch.inference_mode(), cast:
            run(images)
        wait()

    model.train()
    seconds = timing.time_calls(train)
    model.eval()
    return make_row(case.batch_size, seconds, timing.time_calls(infer))


if __name__ == "__main__":
    values, name = json.loads(sys.stdin.read())
    print(json.dumps(compile_keras(StepCase(**values), name)))

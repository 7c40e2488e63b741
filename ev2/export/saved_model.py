"""A TensorFlow SavedModel: jax2tf, with the weights as its variables.

    logits = tf.saved_model.load(path)(pictures)

The signature `serving_default` takes `images` and gives `logits`. The batch is free,
and one folder serves CPU, GPU and TPU.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ev2.export import program as programs
from ev2.export import stablehlo


def write(program: programs.Program, path: pathlib.Path) -> None:
    """Writes `program` to the folder `path`."""
    from jax.experimental import jax2tf

    from ev2.data.tensorflow import tf

    convert = jax2tf.convert(
        program.apply,
        polymorphic_shapes=[None, "batch, ..."],
        with_gradient=False,
        native_serialization_platforms=stablehlo.PLATFORMS,
    )
    module: Any = tf.Module()
    module.weights = jax.tree.map(
        lambda value: tf.Variable(value, trainable=False), program.variables
    )
    images = tf.TensorSpec((None, *program.image_shape), tf.uint8, name="images")

    @tf.function(input_signature=[images], autograph=False)
    def call(images):
        return convert(module.weights, images)

    @tf.function(input_signature=[images], autograph=False)
    def serve(images):
        return {"logits": call(images)}

    module.__call__ = call
    signatures = {"serving_default": serve.get_concrete_function()}
    tf.saved_model.save(module, str(path), signatures)


def load(path: pathlib.Path, program: programs.Program) -> Callable:
    """Returns the function, uint8 pictures to logits, that `path` holds."""
    del program
    from ev2.data.tensorflow import tf

    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    return lambda images: np.asarray(serve(images=tf.constant(images))["logits"])

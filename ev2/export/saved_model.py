"""A TensorFlow SavedModel, made by jax2tf, with the weights as its variables.

    logits = tf.saved_model.load(path)(images)

The signature `serving_default` maps `images` to `logits`. The batch is free, and one
folder serves CPU, GPU and TPU.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ev2.export import stablehlo
from ev2.export.servable import Servable


def write(source: Servable, path: os.PathLike) -> None:
    """Writes the folder `path`."""
    from jax.experimental import jax2tf

    from ev2.data.tensorflow import tf

    convert = jax2tf.convert(
        source.apply,
        polymorphic_shapes=[None, "batch, ..."],
        with_gradient=False,
        native_serialization_platforms=stablehlo.PLATFORMS,
    )
    module: Any = tf.Module()
    module.weights = jax.tree.map(
        lambda value: tf.Variable(value, trainable=False), source.variables
    )
    images = tf.TensorSpec((None, *source.image_shape), tf.uint8, name="images")

    @tf.function(input_signature=[images], autograph=False)
    def call(images):
        return convert(module.weights, images)

    @tf.function(input_signature=[images], autograph=False)
    def serve(images):
        return {"logits": call(images)}

    module.__call__ = call
    signatures = {"serving_default": serve.get_concrete_function()}
    tf.saved_model.save(module, os.fspath(path), signatures)


def load(path: os.PathLike, source: Servable) -> Callable:
    """Returns the function of the folder `path`, uint8 images to logits."""
    from ev2.data.tensorflow import tf

    del source
    serve = tf.saved_model.load(os.fspath(path)).signatures["serving_default"]
    return lambda images: np.asarray(serve(images=tf.constant(images))["logits"])

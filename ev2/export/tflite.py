"""A TensorFlow Lite file, made by TensorFlow's converter from the StableHLO program.

The file has built-in operators alone: no Flex and no custom operators. The converter
gets convolutions (`jaxpr.with_convolutions`), because it refuses a product of a rank-4
array at batch 1, and a batch of 1, because it writes out every broadcast over a free
batch. It folds normalizations into the convolutions.
"""

import os
import pathlib
import warnings
from collections.abc import Callable

import numpy as np

from ev2.export import jaxpr
from ev2.export.servable import Servable

# Lowered as for an accelerator: the converter does not check the platform.
_PLATFORMS = ("tpu",)


def write(source: Servable, path: os.PathLike) -> None:
    """Writes the file `path`, for one image at a time."""
    from jax.experimental import jax2tf

    from ev2.data.tensorflow import tf

    convert = jax2tf.convert(
        jaxpr.with_convolutions(source.logits),
        with_gradient=False,
        native_serialization_platforms=_PLATFORMS,
    )
    images = tf.TensorSpec((1, *source.image_shape), tf.uint8, name="images")
    function = tf.function(convert, input_signature=[images], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    pathlib.Path(path).write_bytes(converter.convert())


def load(path: os.PathLike, source: Servable) -> Callable:
    """Returns the function of the file `path`, which runs one image after another."""
    from ev2.data.tensorflow import tf

    del source
    with warnings.catch_warnings():
        # Announces its move to a package that pins TensorFlow.
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(os.fspath(path))
    interpreter.allocate_tensors()
    (images_in,) = interpreter.get_input_details()
    (logits_out,) = interpreter.get_output_details()

    def call(images: np.ndarray) -> np.ndarray:
        logits = []
        for image in images:
            interpreter.set_tensor(images_in["index"], image[None])
            interpreter.invoke()
            logits.append(interpreter.get_tensor(logits_out["index"]))
        return np.concatenate(logits)

    return call

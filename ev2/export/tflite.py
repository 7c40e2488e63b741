"""A TensorFlow Lite file: TensorFlow's converter on the StableHLO program.

The converter takes what jax2tf makes as it is, with built-in operators alone: no Flex,
no custom ones. It is given convolutions (`program.as_convolutions`), because it refuses
a product of a rank-4 array at batch 1, and a batch of 1, because with a free one it
spells out every broadcast; then normalizations melt into the convolutions.
"""

import pathlib
import warnings
from collections.abc import Callable

import numpy as np

from ev2.export import program as programs

# Lowered as for an accelerator, which the converter neither knows nor asks.
_PLATFORMS = ("tpu",)


def write(program: programs.Program, path: pathlib.Path) -> None:
    """Writes `program` to the file `path`, for one picture at a time."""
    from jax.experimental import jax2tf

    from ev2.data.tensorflow import tf

    convert = jax2tf.convert(
        programs.as_convolutions(program.logits),
        with_gradient=False,
        native_serialization_platforms=_PLATFORMS,
    )
    images = tf.TensorSpec((1, *program.image_shape), tf.uint8, name="images")
    function = tf.function(convert, input_signature=[images], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    path.write_bytes(converter.convert())


def load(path: pathlib.Path, program: programs.Program) -> Callable:
    """Returns the function, uint8 pictures to logits, that `path` holds.

    It calls the interpreter once per picture.
    """
    del program
    from ev2.data.tensorflow import tf

    with warnings.catch_warnings():
        # It says that it will move to a package of its own, which pins TensorFlow.
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    (images_in,), (logits_out,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )

    def call(images: np.ndarray) -> np.ndarray:
        rows = []
        for image in images:
            interpreter.set_tensor(images_in["index"], image[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(logits_out["index"]))
        return np.concatenate(rows)

    return call

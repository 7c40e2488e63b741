"""Imports TensorFlow with few messages on stderr and without taking GPUs from JAX.

    from ev2.data.tensorflow import tf

The settings apply to the process, unless the user has set them in the environment.
"""

import contextlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # prints about itself

import tensorflow as tf  # noqa: E402

with contextlib.suppress(RuntimeError):  # started before: it keeps its devices
    tf.config.set_visible_devices([], "GPU")  # their memory belongs to JAX

__all__ = ["tf"]

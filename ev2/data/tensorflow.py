"""Imports TensorFlow without its messages and without taking GPUs from JAX.

from ev2.data.tensorflow import tf
"""

import contextlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # prints about itself

# TensorFlow's C++ prints about CUDA before it reads any setting, and a refusal is one
# line on stderr. Errors of the import are Python exceptions, which are not hidden.
_stderr, _devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_devnull, 2)
try:
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # started before: it keeps its devices
        tf.config.set_visible_devices([], "GPU")  # their memory belongs to JAX
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
    os.close(_devnull)

__all__ = ["tf"]

"""Pictures from storage to batches of NumPy arrays: the home of TensorFlow.

`describe(config)` tells what the data are, `make_train_data` gives the batches of a
stage, `make_eval_data` those of an evaluation.
"""

import tensorflow as tf
from absl import logging

from ev2.data.pipeline import Batches, make_eval_data, make_train_data
from ev2.data.source import Info, describe

__all__ = ["Batches", "Info", "describe", "make_eval_data", "make_train_data"]

try:
    tf.config.set_visible_devices([], "GPU")  # the GPU's memory belongs to JAX
except RuntimeError:
    logging.warning("TensorFlow was started before ev2.data and may hold GPU memory.")

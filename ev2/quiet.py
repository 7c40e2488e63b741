"""Starts TensorFlow without its notes on stderr and without taking the GPU from JAX."""

import os


def import_tensorflow():
    """Returns the module `tensorflow`, imported.

    Its notes on CUDA and logging come from C++, before it reads any setting that would
    silence them. Errors are Python exceptions and are raised as ever.
    """
    # oneDNN changes nothing for pictures and prints about itself.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")  # the GPU's memory belongs to JAX
    except RuntimeError:
        pass  # TensorFlow was started before; it keeps the devices it has
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
    return tf

"""Pictures from storage to batches of NumPy arrays: the home of TensorFlow.

`describe(config)` tells what the data are, `make_train_data` gives the batches of a
stage, `make_eval_data` those of an evaluation, `make_picture_data` those of pictures
that a person names.
"""

import os

# oneDNN changes nothing for pictures and prints about itself; set before the import.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def _import_quietly() -> None:
    """Imports TensorFlow without its notes on CUDA and logging on stderr.

    They come from C++, before TensorFlow reads any setting that would silence them.
    Errors are Python exceptions and are raised as ever.
    """
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


_import_quietly()

from ev2.data.pictures import find_pictures, why_not  # noqa: E402
from ev2.data.pipeline import (  # noqa: E402
    Batches,
    check,
    make_eval_data,
    make_picture_data,
    make_train_data,
)
from ev2.data.source import (  # noqa: E402
    OWN_PICTURES,
    Info,
    describe,
    is_undivided,
    read_class_names,
)

__all__ = [
    "OWN_PICTURES",
    "Batches",
    "Info",
    "check",
    "describe",
    "find_pictures",
    "is_undivided",
    "make_eval_data",
    "make_picture_data",
    "make_train_data",
    "read_class_names",
    "why_not",
]

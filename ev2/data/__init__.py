"""Pictures from storage to batches of NumPy arrays: the home of TensorFlow.

`describe(config)` tells what the data are, `make_train_data` gives the batches of a
stage, `make_eval_data` those of an evaluation, `make_picture_data` those of pictures
that a person names.
"""

from ev2 import quiet

quiet.import_tensorflow()

from ev2.data.image_paths import find_pictures, why_not  # noqa: E402
from ev2.data.pipeline import (  # noqa: E402
    Batches,
    check,
    make_eval_data,
    make_picture_data,
    make_train_data,
)
from ev2.data.sources import (  # noqa: E402
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

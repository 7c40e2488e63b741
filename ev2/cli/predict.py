"""The command `ev2 predict`."""

from collections.abc import Sequence

from ev2.cli import flags
from ev2.cli.commands import command


@command(
    "ev2 predict --checkpoint=runs/demo cat.jpg dog.jpg",
    flags.CHECKPOINT,
    flags.switch("json", "Prints one JSON object per image."),
    flags.WEIGHTS,
    flags.integer("top", "Number of classes to print.", 5),
    flags.integer("batch_size", "Images at once.", 32),
    flags.integer("image_size", "Pixels; 0 for the checkpoint's.", 0),
    arguments="IMAGE...",
)
def predict(values: flags.Values, images: Sequence[str]) -> None:
    """Classifies images: the most probable classes and their names."""
    from ev2.evaluation import predict

    options = flags.pick(values, "weights", "top", "batch_size", "image_size")
    predict.print_predictions(
        values.checkpoint, images, json_lines=values.json, **options
    )

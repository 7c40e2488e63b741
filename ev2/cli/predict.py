"""Classifies images: the most probable classes and their names."""

from collections.abc import Sequence

from ev2.cli import flags

EXAMPLE = "ev2 predict --checkpoint=runs/demo cat.jpg dog.jpg"
ARGUMENTS = "IMAGE..."
FLAGS = (
    flags.CHECKPOINT,
    flags.switch("json", "Prints one JSON object per image."),
    flags.WEIGHTS,
    flags.integer("top", "Number of classes to print.", 5),
    flags.integer("batch_size", "Images at once.", 32),
    flags.integer("image_size", "Pixels; 0 for the checkpoint's.", 0),
)


def run(values: flags.Values, images: Sequence[str]) -> None:
    from ev2.evaluation import predict

    predict.print_predictions(
        values.checkpoint,
        images,
        json_lines=values.json,
        weights=values.weights,
        top=values.top,
        batch_size=values.batch_size,
        image_size=values.image_size,
    )

"""Measures the exact top-1 and top-5 accuracy of weights over a split."""

import json

from ev2.cli import flags

EXAMPLE = "ev2 evaluate --checkpoint=runs/demo"
FLAGS = (
    flags.CHECKPOINT,
    flags.OPTIONAL_RECIPE,
    flags.WEIGHTS,
    flags.choice(
        "split",
        "Images to evaluate; all, for a directory without train/ and val/, is the "
        "default for weights that were not trained on a directory.",
        ("eval", "train", "all"),
    ),
    flags.integer("batch_size", "Global images; 0 for the recipe's.", 0),
    flags.integer("image_size", "Pixels; 0 for the checkpoint's.", 0),
)


def run(values: flags.Values) -> None:
    from ev2.evaluation import evaluate
    from ev2.train import validate

    if values.config is not None:
        validate.check_config(values.config)
    results = evaluate.evaluate_checkpoint(
        values.checkpoint,
        values.config,
        weights=values.weights,
        split=values.split,
        batch_size=values.batch_size,
        image_size=values.image_size,
    )
    print(json.dumps(results))

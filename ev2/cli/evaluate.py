"""The command `ev2 evaluate`."""

import json

from ev2.cli import flags
from ev2.cli.commands import command


@command(
    "ev2 evaluate --checkpoint=runs/demo",
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
def evaluate(values: flags.Values) -> None:
    """Measures the exact top-1 and top-5 accuracy of weights over a split."""
    from ev2.evaluation import evaluate
    from ev2.train import validate

    if values.config is not None:
        validate.check_config(values.config)
    options = flags.pick(values, "weights", "split", "batch_size", "image_size")
    results = evaluate.evaluate_checkpoint(values.checkpoint, values.config, **options)
    print(json.dumps(results))

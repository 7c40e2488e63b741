"""The commands of trained weights: evaluate, predict, convert and export."""

import json
from collections.abc import Sequence

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


_PREPROCESSING = (
    flags.words(
        "mean",
        "Subtracted from pixels in 0..255: one number or red,green,blue. By default "
        "published, like the four values below.",
    ),
    flags.words("std", "Divides pixels in 0..255: one number or red,green,blue."),
    flags.integer("image_size", "Pixels."),
    flags.string("interpolation", "bilinear or bicubic."),
    flags.string("eval_crop", "resize or center."),
)


@command(
    "ev2 convert efficientnetv2-s.tgz --out=weights/s",
    flags.string("out", "Directory to write the checkpoint to.", required=True),
    flags.string("model", "Network; detected from the file if not given."),
    flags.switch("raw", "Takes the raw weights of a released checkpoint."),
    flags.integer("num_classes", "Classes; the file's if not given."),
    flags.switch("new_head", "Initializes a new classifier."),
    flags.choice(
        "padding",
        "symmetric for timm's networks without tf_ in their name.",
        ("", "same", "symmetric"),
        default="",
    ),
    *_PREPROCESSING,
    flags.JSON,
    arguments="SOURCE",
)
def convert(values: flags.Values, sources: Sequence[str]) -> None:
    """Converts published weights to a checkpoint."""
    from ev2.checkpoint import pretrained
    from ev2.checkpoint.published import convert

    given = flags.pick(values, *(flag.name for flag in _PREPROCESSING))
    report = pretrained.convert_published(
        sources[0],
        values.out,
        name=values.model or "",
        averaged=not values.raw,
        **flags.pick(values, "num_classes", "new_head", "padding"),
        overrides={name: v for name, v in given.items() if v is not None},
    )
    flags.show(values.json, report, convert.format_report(report, values.out))


@command(
    "ev2 export --checkpoint=runs/demo --format=onnx --out=demo.onnx",
    flags.CHECKPOINT,
    flags.string(
        "format", "stablehlo, saved_model, tflite, onnx or safetensors.", required=True
    ),
    flags.string("out", "File or directory to write, new.", required=True),
    flags.WEIGHTS,
)
def export(values: flags.Values) -> None:
    """Exports weights to a file that other tools can serve."""
    from ev2.export import export

    report = export.export(
        values.checkpoint, values.format, values.out, weights=values.weights
    )
    print(
        f"{values.out}: {report['bytes']:,} bytes; largest difference to the source "
        f"{report['max_abs_difference']:.2g}, allowed {report['bound']:.2g}"
    )

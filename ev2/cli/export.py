"""The command `ev2 export`."""

from ev2.cli import flags
from ev2.cli.commands import command


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

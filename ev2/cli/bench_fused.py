"""The command `ev2 bench fused`."""

from ev2.cli import flags
from ev2.cli.bench import show
from ev2.cli.commands import command


@command(
    "ev2 bench fused --tpu=v3-8",
    flags.string("tpu", "Slice of TPU v3 to compile for.", "v3-8"),
    flags.integer("batch", "Images per device.", 32),
    flags.integer("size", "Pixels.", 380),
    flags.JSON,
)
def fused(values: flags.Values) -> None:
    """Compares Fused-MBConv in EfficientNet-B4 with Table 3 of the paper."""
    from ev2.bench import table3

    figures = table3.measure(
        slice_name=values.tpu, batch_size=values.batch, image_size=values.size
    )
    show(values, table3, figures)

"""Compares Fused-MBConv in EfficientNet-B4 with Table 3 of the paper."""

from ev2.cli import flags

EXAMPLE = "ev2 bench fused --tpu=v3-8"
FLAGS = (
    flags.string("tpu", "Slice of TPU v3 to compile for.", "v3-8"),
    flags.integer("batch", "Images per device.", 32),
    flags.integer("size", "Pixels.", 380),
    flags.JSON,
)


def run(values: flags.Values) -> None:
    from ev2.bench import table3

    figures = table3.measure(
        slice_name=values.tpu, batch_size=values.batch, image_size=values.size
    )
    flags.show(values.json, figures, table3.format_table(figures))

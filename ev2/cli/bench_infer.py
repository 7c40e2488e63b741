"""Measures the latency of inference, live and exported."""

from ev2.cli import flags

EXAMPLE = "ev2 bench infer --model=efficientnetv2-s --batch=1"
FLAGS = (
    flags.string("model", "Network with random weights."),
    flags.string("checkpoint", "Weights to measure in place of --model."),
    flags.integer("batch", "Images at once.", 16),
    flags.integer("image_size", "Pixels; 0 for the size of evaluation.", 0),
    flags.words("formats", "Exports to measure; all if not given."),
    flags.JSON,
)


def run(values: flags.Values) -> None:
    from ev2.bench import latency

    figures = latency.measure(
        model=values.model,
        checkpoint=values.checkpoint,
        batch_size=values.batch,
        image_size=values.image_size,
        formats=values.formats,
    )
    flags.show(values.json, figures, latency.format_table(figures))

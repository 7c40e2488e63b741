"""The command `ev2 bench infer`."""

from ev2.cli import flags
from ev2.cli.bench import show
from ev2.cli.commands import command


@command(
    "ev2 bench infer --model=efficientnetv2-s --batch=1",
    flags.string("model", "Network with random weights."),
    flags.string("checkpoint", "Weights to measure in place of --model."),
    flags.integer("batch", "Images at once.", 16),
    flags.integer("image_size", "Pixels; 0 for the size of evaluation.", 0),
    flags.words("formats", "Exports to measure; all if not given."),
    flags.JSON,
)
def infer(values: flags.Values) -> None:
    """Measures the latency of inference, live and exported."""
    from ev2.bench import latency

    options = flags.pick(values, "model", "checkpoint", "image_size", "formats")
    show(values, latency, latency.measure(batch_size=values.batch, **options))

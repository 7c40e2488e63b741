"""The command `ev2 prepare fashion-mnist`."""

from ev2.cli import flags
from ev2.cli.commands import command
from ev2.cli.prepare import OUT, show


@command(
    "ev2 prepare fashion-mnist --source=fashion-mnist --out=data/fashion",
    flags.string("source", "Directory of the original files.", required=True),
    flags.integer("train_per_class", "Training images per class, to 6000.", 1200),
    flags.integer("eval_per_class", "Evaluation images per class, to 1000.", 200),
    *(OUT, flags.JSON),
)
def fashion_mnist(values: flags.Values) -> None:
    """Writes the embedded shards again, or more images, from the original files."""
    from ev2.data.prepare import fashion_mnist

    counts = flags.pick(values, "train_per_class", "eval_per_class")
    write = fashion_mnist.prepare_fashion_mnist
    show(values, write(values.source, values.out, **counts))

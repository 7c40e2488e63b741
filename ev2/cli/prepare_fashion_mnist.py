"""Writes the embedded shards again, or more images, from the original files."""

from ev2.cli import flags, prepare

EXAMPLE = "ev2 prepare fashion-mnist --source=fashion-mnist --out=data/fashion"
FLAGS = (
    flags.string("source", "Directory of the original files.", required=True),
    flags.integer(
        "train_per_class",
        "Training images of each class, at most 6000.",
        1200,
        lower_bound=1,
    ),
    flags.integer(
        "eval_per_class",
        "Evaluation images of each class, at most 1000.",
        200,
        lower_bound=1,
    ),
    *prepare.PLAIN_FLAGS,
)


def run(values: flags.Values) -> None:
    from ev2.data.prepare import fashion_mnist

    manifest = fashion_mnist.prepare_fashion_mnist(
        values.source,
        values.out,
        train_per_class=values.train_per_class,
        eval_per_class=values.eval_per_class,
    )
    prepare.write_manifest(values, manifest)

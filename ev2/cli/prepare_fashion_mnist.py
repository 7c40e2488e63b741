"""Writes the embedded shards again, or more images, from the original files."""

from ev2.cli import flags, prepare

EXAMPLE = "ev2 prepare fashion-mnist --source=fashion-mnist --out=data/fashion"
FLAGS = (
    flags.string("source", "Directory of the original files.", required=True),
    flags.integer("train_per_class", "Training images per class, to 6000.", 1200),
    flags.integer("eval_per_class", "Evaluation images per class, to 1000.", 200),
    *prepare.IN_MEMORY_FLAGS,
)


def run(values: flags.Values) -> None:
    from ev2.data.prepare import fashion_mnist

    manifest = fashion_mnist.prepare_fashion_mnist(
        values.source,
        values.out,
        train_per_class=values.train_per_class,
        eval_per_class=values.eval_per_class,
    )
    prepare.show_manifest(values, manifest)

"""Measures input pipelines in images per second, beside other loaders."""

from ev2.cli import flags

EXAMPLE = "ev2 bench input --config=configs/demo.py"
FLAGS = (
    flags.RECIPE,
    flags.integer("images", "Images that each figure is taken over.", 2000),
    flags.words("sizes", "Pixels; the recipe's if not given.", []),
    flags.JSON,
)


def run(values: flags.Values) -> None:
    from ev2.bench import input as bench

    sizes = flags.parse_integers("sizes", values.sizes)
    figures = bench.measure(values.config, images=values.images, sizes=sizes)
    flags.show(values.json, figures, bench.format_table(figures))

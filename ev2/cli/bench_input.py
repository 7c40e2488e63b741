"""The command `ev2 bench input`."""

from ev2.cli import flags
from ev2.cli.bench import show
from ev2.cli.commands import command


@command(
    "ev2 bench input --config=configs/demo.py",
    flags.RECIPE,
    flags.integer("images", "Images that each figure is taken over.", 2000),
    flags.words("sizes", "Pixels; the recipe's if not given.", []),
    flags.JSON,
)
def input(values: flags.Values) -> None:
    """Measures input pipelines in images per second, beside other loaders."""
    from ev2.bench import input

    sizes = flags.parse_integers("sizes", values.sizes)
    show(values, input, input.measure(values.config, images=values.images, sizes=sizes))

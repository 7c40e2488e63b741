"""Writes a directory of class directories as shards: train and validation."""

from ev2.cli import flags, prepare

EXAMPLE = "ev2 prepare folder --source=images --out=data/shards"
FLAGS = (
    flags.string(
        "source",
        "Directory of class directories, or of train and val.",
        required=True,
    ),
    flags.number(
        "eval_fraction",
        "Fraction of each class to hold out as split validation, without val.",
        0.1,
    ),
    *prepare.BEAM_FLAGS,
)


def run(values: flags.Values) -> None:
    from ev2.data.prepare import image_folder

    prepare.run_beam(
        values,
        lambda: image_folder.list_folder(
            source=values.source, out=values.out, eval_fraction=values.eval_fraction
        ),
    )

"""The command `ev2 prepare folder`."""

from ev2.cli import flags
from ev2.cli.commands import command
from ev2.cli.prepare import BEAM_FLAGS, run_beam


@command(
    "ev2 prepare folder --source=images --out=data/shards",
    flags.string(
        "source", "Directory of class directories, or of train and val.", required=True
    ),
    flags.number(
        "eval_fraction",
        "Fraction of each class to hold out as split validation, without val.",
        0.1,
    ),
    *BEAM_FLAGS,
)
def folder(values: flags.Values) -> None:
    """Writes a directory of class directories as shards: train and validation."""
    from ev2.data.prepare import image_folder

    options = flags.pick(values, "source", "out", "eval_fraction")
    run_beam(values, image_folder.list_folder, **options)

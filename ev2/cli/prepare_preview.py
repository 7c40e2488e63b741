"""The command `ev2 prepare preview`."""

from ev2.cli import flags
from ev2.cli.commands import command


@command(
    "ev2 prepare preview --config=configs/demo.py --out=preview.png",
    flags.RECIPE,
    flags.string("out", "PNG file to write.", required=True),
    flags.string("image", "Image to augment; a built-in one if not given."),
)
def preview(values: flags.Values) -> None:
    """Draws all augmentation operations by magnitude, as a PNG."""
    from ev2.data.augment import preview

    preview.write_preview(values.config, values.out, values.image or "")
    print(f"preview: {values.out}")

"""Draws all augmentation operations by magnitude, as a PNG."""

from ev2.cli import flags

EXAMPLE = "ev2 prepare preview --config=configs/demo.py --out=preview.png"
FLAGS = (
    flags.RECIPE,
    flags.string("out", "PNG file to write.", required=True),
    flags.string("image", "Image to augment; a built-in one if not given."),
)


def run(values: flags.Values) -> None:
    from ev2.data.augment import preview

    preview.write_preview(values.config, values.out, values.image or "")
    print(f"preview: {values.out}")

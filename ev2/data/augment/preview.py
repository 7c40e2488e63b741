"""The contact sheet of a recipe's augmentation, as a figure and as a PNG file."""

from collections.abc import Sequence
from typing import Any

from matplotlib import figure as mpl_figure

from ev2 import files
from ev2.report import plots

WIDTH_IN = 7.2  # the text width of a paper
NAME_IN, HEAD_IN, NOTE_IN = 1.15, 0.75, 0.2  # left of, above, and below pictures
GAP_IN = 0.06
NOTE_PT = 7.5


def write_preview(config: Any, out: str, image: str = "") -> None:
    """Writes the sheet of all operations by magnitude to the PNG file `out`.

    Args:
        config: a recipe; `data.augment` and `data.randaugment_variant` say what a
            magnitude means, the last training size how large the picture is.
        out: file to write, new.
        image: a picture to show them on; "" for a drawn one.

    Raises:
        InputError: the config has no operations, the picture cannot be read, or the
            file exists or cannot be written.
    """
    files.check_new("out", out)
    from ev2.data.augment import sheet  # late: loads TensorFlow

    magnitudes, rows = sheet.make_sheet(config, image)
    size = config.progressive.image_size[-1]
    what = {"randaugment": "RandAugment", "autoaugment": "AutoAugment"}
    title = (
        f"{what[config.data.augment]}, {config.data.randaugment_variant} arithmetic, "
        f"{size} px"
    )
    png = plots.to_png(contact_sheet(title, magnitudes, rows, plots.LIGHT))
    with files.written_aside(out) as aside:
        aside.write_bytes(png)


def contact_sheet(
    title: str, magnitudes: Sequence[float], rows: Sequence[Any], theme: plots.Theme
) -> mpl_figure.Figure:
    """Returns a row of pictures per operation, a column per magnitude.

    Args:
        title: what the operations belong to.
        magnitudes: M numbers.
        rows: `sheet.Row`s of M pictures, each with the quantity below it.
        theme: colours.
    """
    pitch = (WIDTH_IN - NAME_IN) / len(magnitudes)
    row_in = pitch + NOTE_IN
    figure = plots.new_figure(theme, HEAD_IN + row_in * len(rows), WIDTH_IN)
    figure.set_layout_engine("none")
    head = HEAD_IN - 0.15
    _write(figure, GAP_IN, 0.2, title, color=theme.text, fontsize=plots.TEXT_PT)
    _write(figure, GAP_IN, head, "Magnitude", color=theme.muted)
    for column, magnitude in enumerate(magnitudes):
        middle = NAME_IN + (column + 0.5) * pitch
        _write(figure, middle, head, f"{magnitude:g}", ha="center", color=theme.text)
    side = pitch - GAP_IN
    for number, row in enumerate(rows):
        top = HEAD_IN + number * row_in
        _write(figure, GAP_IN, top + side / 2, row.name, color=theme.text)
        for column, quantity in enumerate(row.quantities):
            left = NAME_IN + column * pitch + GAP_IN / 2
            _show(figure, left, top, side, row.images[column])
            note = {"ha": "center", "color": theme.muted, "fontsize": NOTE_PT}
            _write(figure, left + side / 2, top + side + 0.09, quantity, **note)
    return figure


# Places are inches from the figure's left and from its top.


def _write(figure: mpl_figure.Figure, left: float, top: float, text: str, **style):
    width, height = figure.get_size_inches()
    usual = {"va": "center", "fontsize": plots.SMALL_PT}
    figure.text(left / width, 1 - top / height, text, **{**usual, **style})


def _show(figure: mpl_figure.Figure, left: float, top: float, side: float, image):
    width, height = figure.get_size_inches()
    box = (left / width, 1 - (top + side) / height, side / width, side / height)
    axes = figure.add_axes(box)
    axes.set_axis_off()
    axes.imshow(image, interpolation="antialiased")

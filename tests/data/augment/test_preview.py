"""Run: pytest tests/data/augment/test_preview.py

The contact sheet as a figure, and the verb that writes it.
"""

import pathlib

import numpy as np
from PIL import Image

from ev2.cli import main as cli
from ev2.data.augment import preview, sheet
from ev2.report import plots

DEMO = f"--config={pathlib.Path(__file__).parents[3]}/configs/demo.py"


def test_figure_has_every_picture_and_label_apart():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    rows = [sheet.Row(name, images, ["off", name * 2]) for name in ("One", "Two")]
    figure = preview.contact_sheet("A title", [0.0, 2.5], rows, plots.LIGHT)
    texts = {text.get_text() for text in figure.texts}
    assert {"A title", "Magnitude", "0", "2.5", "One", "Two", "OneOne"} <= texts
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == 4
    for i, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_the_verb_writes_a_png(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert cli.main(["prepare", "preview", DEMO, f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as image:
        width, height = image.size
    assert width == preview.WIDTH_IN * plots.PNG_DPI and height > 2 * width


def test_the_verb_refuses_what_it_cannot_do(tmp_path, capsys):
    for options, message in (
        ([f"--out={__file__}/sheet.png"], "cannot be written"),
        ([f"--out={__file__}"], "exists and is left as it is"),
        ([f"--out={tmp_path}/a.png", "--image=/nothing.jpg"], "/nothing.jpg"),
        ([f"--out={tmp_path}/a.png", "--config.data.augment=none"], "data.augment"),
    ):
        assert cli.main(["prepare", "preview", DEMO, *options]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())

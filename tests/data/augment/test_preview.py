"""The rows of the sheet are what training does at these magnitudes."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ev2 import errors
from ev2.cli import main as cli
from ev2.data.augment import preview, randaugment
from tests.helpers import command_line, image_files

DEMO = f"--config={pathlib.Path(__file__).parents[3]}/configs/demo.py"
SIDE = 48


def make_rows(image="", **values):
    config = image_files.make_config(**values)
    config.progressive.image_size = (16, SIDE)
    magnitudes, rows = preview.make_rows(config, image)
    return magnitudes, {row.name: row for row in rows}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """An image file whose central square is `image_files.ramps`."""
    pixels = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
    pixels[:, SIDE : 2 * SIDE] = image_files.ramps(SIDE)
    path = tmp_path_factory.mktemp("images") / "wide.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def test_rows_are_the_operations_at_their_magnitudes(wide):
    magnitudes, rows = make_rows(wide, randaugment_variant="released")
    assert magnitudes == (0, 5, 10, 15, 20, 25) and len(rows) == 16
    original = image_files.ramps(SIDE)
    draws = tf.constant([0.0, 0.75, 0.5, 0.5])
    levels = randaugment.released_levels(15.0, SIDE)
    operations = randaugment.make_operations(levels)
    for name, row in rows.items():
        shown = slice(16, 32) if "middle third" in name else slice(None)
        expected = operations[name.split()[0]](tf.constant(original), draws).numpy()
        for column, image in ((0, original), (3, expected)):
            part = image[shown, shown]
            assert image_files.difference(row.images[column], part) == 0, name
        assert row.quantities[0] == "off" and len(row.quantities) == 6


def test_quantities_have_units():
    _, rows = make_rows()
    assert rows["Rotate"].quantities[1:3] == ["15°", "30°"]
    assert rows["Posterize"].quantities[3:5] == ["2 bits", "1 bit"]
    assert rows["Color less"].quantities[1] == "factor 0.55"
    assert rows["Color more"].quantities[1] == "factor 1.45"
    assert rows["TranslateX"].quantities[2] == "16 px"
    assert rows["Cutout"].quantities[2] == "12 px"
    assert rows["Invert"].quantities[2] == ""


def test_autoaugment_has_its_own_magnitudes_and_means_0_by_0():
    magnitudes, rows = make_rows(augment="autoaugment", randaugment_variant="released")
    assert magnitudes == (0, 2, 4, 6, 8, 10)
    assert rows["Color"].quantities[0] == "factor 0.10"
    assert rows["TranslateY"].quantities[5] == "250 px"


def test_bad_input(tmp_path):
    with pytest.raises(errors.InputError, match="data.augment: 'none'"):
        make_rows(augment="none")
    with pytest.raises(errors.InputError, match="data.randaugment_variant"):
        make_rows(randaugment_variant="other")
    with pytest.raises(errors.InputError, match="image: .*no such file"):
        make_rows(str(tmp_path / "absent.jpg"))
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(errors.InputError, match=r"not an image of a known format"):
        make_rows(str(tmp_path / "text.jpg"))


def test_sheet_has_every_image_and_no_text_over_it():
    colors = [(200, 0, 50 + 40 * i) for i in range(4)]
    solid = np.array(colors, np.uint8).reshape(2, 2, 1, 1, 3)
    rows = [
        preview.OperationRow(name, pair.repeat(4, 1).repeat(4, 2), ["off", "30°"])
        for name, pair in zip(("One", "Two"), solid, strict=True)
    ]
    sheet = preview.draw_sheet("A title", [0.0, 2.5], rows)
    counts = {color: count for count, color in sheet.getcolors(2**16) or ()}
    tile_px = {counts[color] for color in colors}
    assert len(tile_px) == 1 and int(tile_px.pop() ** 0.5) > 500
    nameless = [preview.OperationRow("", row.images, ["", ""]) for row in rows]
    assert preview.draw_sheet("A title", [0.0, 2.5], nameless) != sheet


def test_command_writes_a_png(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert cli.main(["prepare", "preview", DEMO, f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.width == preview.WIDTH and image.height > 2 * image.width


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([f"--out={__file__}/sheet.png"], "cannot be written"),
        ([f"--out={__file__}"], "exists and is left as it is"),
        (["--image=/nothing.jpg"], "/nothing.jpg"),
        (["--config.data.augment=none"], "data.augment"),
    ],
)
def test_command_refuses_bad_input_in_one_line(tmp_path, capsys, options, message):
    options = [f"--out={tmp_path}/a.png", *options]
    assert message in command_line.refuse(capsys, "prepare", "preview", DEMO, *options)
    assert not list(tmp_path.iterdir())

"""Run: pytest tests/data/augment/test_sheet.py

The rows of the contact sheet are what training does at these magnitudes.
"""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ev2 import errors
from ev2.data.augment import randaugment, sheet
from tests.helpers import images as pictures

SIDE = 48


def _make(path="", **values):
    config = pictures.make_config(**values)
    config.progressive.image_size = (16, SIDE)
    magnitudes, rows = sheet.make_sheet(config, path)
    return magnitudes, {row.name: row for row in rows}


def test_rows_are_the_operations_at_their_magnitudes():
    magnitudes, rows = _make(randaugment_variant="released")
    assert magnitudes == (0, 5, 10, 15, 20, 25) and len(rows) == 16
    picture = tf.constant(sheet.draw_landscape(SIDE))
    draws = tf.constant([0.0, 0.75, 0.5, 0.5])
    named = randaugment.make_operations(randaugment.released_levels(15.0, SIDE))
    for name, row in rows.items():
        shown = slice(16, 32) if "middle third" in name else slice(None)
        expected = named[name.split()[0]](picture, draws).numpy()
        for column, whole in ((0, picture.numpy()), (3, expected)):
            part = whole[shown, shown]
            assert pictures.difference(row.images[column], part) == 0, name
        assert row.quantities[0] == "off" and len(row.quantities) == 6


def test_quantities_are_in_words_people_use():
    _, rows = _make()
    assert rows["Rotate"].quantities[1:3] == ["15°", "30°"]
    assert rows["Posterize"].quantities[3:5] == ["2 bits", "1 bit"]
    assert rows["Color less"].quantities[1] == "× 0.55"
    assert rows["Color more"].quantities[1] == "× 1.45"
    assert rows["TranslateX"].quantities[2] == "16 px"
    assert rows["Cutout"].quantities[2] == "12 px"
    assert rows["Invert"].quantities[2] == ""


def test_autoaugment_has_its_own_magnitudes_and_means_0_by_0():
    magnitudes, rows = _make(augment="autoaugment", randaugment_variant="released")
    assert magnitudes == (0, 2, 4, 6, 8, 10)
    assert rows["Color"].quantities[0] == "× 0.10"
    assert rows["TranslateY"].quantities[5] == "250 px"


def test_a_picture_of_ones_own_is_shown_by_its_centre(tmp_path):
    wide = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
    wide[:, SIDE : 2 * SIDE] = pictures.ramps(SIDE)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    _, rows = _make(str(tmp_path / "wide.png"))
    shown = rows["Rotate"].images[0]
    assert pictures.difference(shown, pictures.ramps(SIDE)) == 0


def test_bad_input(tmp_path):
    with pytest.raises(errors.InputError, match="data.augment: 'none'"):
        _make(augment="none")
    with pytest.raises(errors.InputError, match="data.randaugment_variant"):
        _make(randaugment_variant="other")
    with pytest.raises(errors.InputError, match="image: .*no such file"):
        _make(str(tmp_path / "absent.jpg"))
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(errors.InputError, match="not a picture of a known kind"):
        _make(str(tmp_path / "text.jpg"))

"""Draws an augmentation's preview sheet: each operation by magnitude, on one image."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ev2 import errors, files
from ev2.data import decode, image_paths, pipeline
from ev2.data.augment import autoaugment, randaugment
from ev2.data.tensorflow import tf

LANDSCAPE = pathlib.Path(__file__).with_name("landscape.png")
MAGNITUDES = {
    "randaugment": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "autoaugment": (0.0, 2.0, 4.0, 6.0, 8.0, 10.0),  # the policy's scale ends at 10
}
_TITLES = {"randaugment": "RandAugment", "autoaugment": "AutoAugment"}
_LEVELS = {"randaugment": randaugment.LEVELS, "autoaugment": autoaugment.LEVELS}
_FACTORED = ("Color", "Contrast", "Brightness", "Sharpness")
_LESS, _MORE = 0.25, 0.75  # draws of the two directions of an operation

WIDTH = 1440  # px, as are the sizes below
_NAME_WIDTH, _HEAD_HEIGHT, _LABEL_HEIGHT, _GAP = 230, 150, 40, 12
_TEXT_PX, _SMALL_PX = 26, 21
_TEXT_COLOR, _MUTED_COLOR = "#1f2328", "#59636e"


@dataclasses.dataclass(frozen=True)
class OperationRow:
    """One operation at M magnitudes: `images [M, s, s, 3] uint8` and M labels.

    s is the image size, or a third of it where the operation changes fine detail.
    """

    name: str
    images: np.ndarray
    quantities: Sequence[str]


def write_preview(config: Any, out: str, image: str = "") -> None:
    """Writes the sheet of all operations by magnitude to the new PNG file `out`.

    Args:
        config: recipe; `data.augment` and `data.randaugment_variant` define what a
            magnitude means, the last training size is the size of the image.
        out: path of the file.
        image: image file to apply the operations to; "" for a drawn landscape.

    Raises:
        InputError: the recipe has no operations, the image cannot be read, or `out`
            exists or cannot be written.
    """
    files.check_new("out", out)
    tf.get_logger().setLevel("ERROR")  # it warns that each magnitude is traced
    magnitudes, rows = make_rows(config, image)
    title = (
        f"{_TITLES[config.data.augment]}, {config.data.randaugment_variant} arithmetic,"
        f" {config.progressive.image_size[-1]} px"
    )
    with files.atomic_path(out) as temporary:
        draw_sheet(title, magnitudes, rows).save(temporary, "PNG")


def make_rows(
    config: Any, image: str = ""
) -> tuple[Sequence[float], list[OperationRow]]:
    """Returns the magnitudes and a row per operation, two where it has two factors.

    Args:
        config: keys `data.*` and `progressive.image_size`.
        image: image file, whose central square is used; "" for a drawn landscape.

    Raises:
        InputError: see `write_preview`.
    """
    data, size = config.data, config.progressive.image_size[-1]
    errors.check_choice("data.augment", data.augment, _LEVELS)
    tables = _LEVELS[data.augment]
    errors.check_choice("data.randaugment_variant", data.randaugment_variant, tables)
    errors.check_choice("data.interpolation", data.interpolation, decode.INTERPOLATIONS)
    original = _read(image or os.fspath(LANDSCAPE), size, data.interpolation)
    magnitudes = MAGNITUDES[data.augment]
    levels = [tables[data.randaugment_variant](m, size) for m in magnitudes]
    two_factors = len(set(levels[-1].factors)) == 2
    rows = []
    for name in randaugment.make_operations(levels[0]):
        directions = {"": _MORE}
        if name in _FACTORED and two_factors:
            directions = {" less": _LESS, " more": _MORE}
        for suffix, direction in directions.items():
            images = [_apply(name, level, original, direction) for level in levels]
            labels = [_quantity(name, level, direction) for level in levels]
            if data.augment == "randaugment":  # magnitude 0 switches it off
                images[0], labels[0] = original, "off"
            row = OperationRow(name + suffix, np.stack(images), labels)
            rows.append(_middle_third(row) if name == "Sharpness" else row)
    return magnitudes, rows


def _apply(
    name: str, levels: randaugment.Levels, image: np.ndarray, direction: float
) -> np.ndarray:
    draws = tf.constant([0.0, direction, 0.5, 0.5])
    operation = randaugment.make_operations(levels)[name]
    return operation(tf.constant(image), draws).numpy()


def _middle_third(row: OperationRow) -> OperationRow:
    side = row.images.shape[1]
    third = slice(side // 3, side - side // 3)
    images = row.images[:, third, third]
    return OperationRow(f"{row.name}\n(middle third)", images, row.quantities)


def _quantity(name: str, levels: randaugment.Levels, direction: float) -> str:
    """Returns the quantity that a magnitude stands for, with its unit; "" if none."""
    if name in _FACTORED:
        return f"factor {levels.factors[direction == _MORE]:.2f}"
    plural = "s" * (levels.posterize_bits != 1)
    return {
        "Rotate": f"{levels.degrees:.0f}°",
        "Posterize": f"{levels.posterize_bits} bit{plural}",
        "Solarize": f"from {levels.solarize_threshold}",
        "SolarizeAdd": f"+ {levels.solarize_addition}",
        "ShearX": f"slope {levels.slope:.2f}",
        "ShearY": f"slope {levels.slope:.2f}",
        "TranslateX": f"{levels.translate_px:.0f} px",
        "TranslateY": f"{levels.translate_px:.0f} px",
        "Cutout": f"{2 * levels.cutout_half_px} px",
    }.get(name, "")


def _read(path: str, size: int, interpolation: str) -> np.ndarray:
    crop = {"eval_crop": "center", "eval_crop_padding": 0, "exif": True}
    preprocessing = {"interpolation": interpolation, **crop}
    batches = pipeline.make_predict_data(
        preprocessing, [path], image_size=size, batch_size=1
    )
    batch = next(batches)
    batches.close()
    if not batch["mask"][0]:
        reason = image_paths.unreadable_reason(path)
        raise errors.InputError(f"image: {path!r}: {reason}")
    return batch["image"][0]


def draw_sheet(
    title: str, magnitudes: Sequence[float], rows: Sequence[OperationRow]
) -> Image.Image:
    """Returns the sheet: a row of images per operation, a column per magnitude."""
    pitch = (WIDTH - _NAME_WIDTH) // len(magnitudes)
    tile, row_height = pitch - _GAP, pitch + _LABEL_HEIGHT
    sheet = Image.new("RGB", (WIDTH, _HEAD_HEIGHT + row_height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    fonts = {size: ImageFont.load_default(size) for size in (_TEXT_PX, _SMALL_PX)}
    write = functools.partial(pen.text, fill=_TEXT_COLOR, font=fonts[_TEXT_PX])
    note = functools.partial(pen.text, fill=_MUTED_COLOR, font=fonts[_SMALL_PX])
    lefts = [_NAME_WIDTH + i * pitch for i in range(len(magnitudes))]
    write((_GAP, 40), title, anchor="lm")
    note((_GAP, _HEAD_HEIGHT - 30), "Magnitude", anchor="lm")
    for left, magnitude in zip(lefts, magnitudes, strict=True):
        write((left + tile / 2, _HEAD_HEIGHT - 30), f"{magnitude:g}", anchor="mm")
    for number, row in enumerate(rows):
        top = _HEAD_HEIGHT + number * row_height
        write((_GAP, top + tile / 2 - _TEXT_PX), row.name)
        for left, image, label in zip(lefts, row.images, row.quantities, strict=True):
            shown = Image.fromarray(image).resize((tile, tile), Image.Resampling.BOX)
            sheet.paste(shown, (left, top))
            note((left + tile / 2, top + tile + 18), label, anchor="mm")
    return sheet

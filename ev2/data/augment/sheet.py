"""Every operation at several magnitudes on one picture, to look at."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ev2 import errors
from ev2.data import decode as image
from ev2.data import image_paths as pictures
from ev2.data import pipeline
from ev2.data.augment import autoaugment, randaugment
from ev2.data.tensorflow import tf

MAGNITUDES = {
    "randaugment": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "autoaugment": (0.0, 2.0, 4.0, 6.0, 8.0, 10.0),  # all that a policy knows
}
_FACTORED = ("Color", "Contrast", "Brightness", "Sharpness")
_LESS, _MORE = 0.25, 0.75  # draws of the two directions


@dataclasses.dataclass(frozen=True)
class Row:
    """An operation: `[M, s, s, 3] uint8` and the quantity that each picture had.

    s is the picture's side, or a third of it where details are what is to be seen.
    """

    name: str
    images: np.ndarray
    quantities: Sequence[str]


def make_sheet(config: Any, path: str = "") -> tuple[Sequence[float], list[Row]]:
    """Returns the magnitudes and a row per operation, two where it has two factors.

    Args:
        config: keys `data.*`, and the last of `progressive.image_size`, the side.
        path: the picture, of which the central square is taken; "" for a drawn one.

    Raises:
        InputError: the config has no operations, or the picture cannot be read.
    """
    image.check(config)
    data, size = config.data, config.progressive.image_size[-1]
    errors.check_choice("data.augment", data.augment, tuple(MAGNITUDES))
    randaugment.check(data.randaugment_variant, data.randaugment_layers)
    picture = _read(data, path, size) if path else draw_landscape(size)
    magnitudes = MAGNITUDES[data.augment]
    tables = {"randaugment": randaugment.LEVELS, "autoaugment": autoaugment.LEVELS}
    make_levels = tables[data.augment][data.randaugment_variant]
    levels = [make_levels(magnitude, size) for magnitude in magnitudes]
    rows = []
    for name in randaugment.make_operations(levels[0]):
        two = name in _FACTORED and len(set(levels[-1].factors)) == 2
        for draw, sign in (
            ((_LESS, " less"), (_MORE, " more")) if two else ((_MORE, ""),)
        ):
            rows.append(_make_row(name, sign, levels, picture, draw))
    if data.augment == "randaugment":
        rows = [_untouched_at_0(row, picture) for row in rows]
    return magnitudes, [
        _middle(row) if row.name.startswith("Sharpness") else row for row in rows
    ]


def _make_row(name, sign, levels, picture: np.ndarray, direction: float) -> Row:
    draws = tf.constant([0.0, direction, 0.5, 0.5])
    images = [
        randaugment.make_operations(each)[name](tf.constant(picture), draws)
        for each in levels
    ]
    describe = _QUANTITIES.get(name, lambda levels, more: "")
    quantities = [describe(each, direction == _MORE) for each in levels]
    return Row(name + sign, np.stack(images), quantities)


def _untouched_at_0(row: Row, picture: np.ndarray) -> Row:
    """RandAugment of magnitude 0 is off, whatever the table says."""
    images = np.concatenate([picture[None], row.images[1:]])
    return Row(row.name, images, ["off", *row.quantities[1:]])


def _middle(row: Row) -> Row:
    """The middle third, in which a changed sharpness can be seen."""
    side = row.images.shape[1]
    third = slice(side // 3, side - side // 3)
    name = f"{row.name}\n(middle third)"
    return Row(name, row.images[:, third, third], row.quantities)


def _bits(levels: randaugment.Levels, more: bool) -> str:
    del more
    return f"{levels.posterize_bits} bit{'s' * (levels.posterize_bits != 1)}"


def _factor(levels: randaugment.Levels, more: bool) -> str:
    return f"× {levels.factors[more]:.2f}"


_QUANTITIES: dict[str, Callable[[randaugment.Levels, bool], str]] = {
    "Rotate": lambda levels, more: f"{levels.degrees:.0f}°",
    "Posterize": _bits,
    "Solarize": lambda levels, more: f"from {levels.solarize_threshold}",
    "SolarizeAdd": lambda levels, more: f"+ {levels.solarize_addition}",
    **dict.fromkeys(_FACTORED, _factor),
    **dict.fromkeys(
        ("ShearX", "ShearY"), lambda levels, more: f"slope {levels.slope:.2f}"
    ),
    **dict.fromkeys(
        ("TranslateX", "TranslateY"),
        lambda levels, more: f"{levels.translate_px:.0f} px",
    ),
    "Cutout": lambda levels, more: f"{2 * levels.cutout_half_px} px",
}


def _read(data: Any, path: str, size: int) -> np.ndarray:
    preprocessing = {
        "interpolation": data.interpolation,
        "eval_crop": "center",
        "eval_crop_padding": 0,
        "exif": True,
    }
    batches = pipeline.make_predict_data(
        preprocessing, [path], image_size=size, batch_size=1
    )
    batch = next(batches)
    batches.close()
    if not batch["mask"][0]:
        raise errors.InputError(f"image: {path!r}: {pictures.unreadable_reason(path)}")
    return batch["image"][0]


def draw_landscape(size: int) -> np.ndarray:
    """A picture with an up, a left, all hues and fine detail: `[S, S, 3] uint8`."""
    y, x = np.mgrid[0:size, 0:size] / size
    scene = np.stack([0.35 + 0.55 * y, 0.55 + 0.25 * y, 0.95 - 0.3 * y], -1)  # sky

    def paint(where, red, green, blue):
        colour = np.stack(np.broadcast_arrays(red, green, blue), -1)
        scene[where] = np.broadcast_to(colour, scene.shape)[where]

    paint(np.hypot(x - 0.75, y - 0.22) < 0.11, 1.0, 0.9 - y, 0.2)  # sun
    paint(y > 0.62 + 0.1 * np.sin(6 * x), 0.25 * y, 0.65 - 0.3 * y, 0.2)  # far hill
    paint(y > 0.8 - 0.12 * np.sin(4 * x + 1), 0.45 * x, 0.85 - 0.5 * y, 0.1)  # near
    wall = (abs(x - 0.3) < 0.15) & (abs(y - 0.65) < 0.13)
    paint(wall, 0.9 - 0.3 * x, 0.85 - 0.3 * x, 0.75)
    paint(wall & (np.floor(40 * x) % 2 == 0), 0.62, 0.5, 0.42)  # planks
    paint((y < 0.53) & (y > 0.33 + abs(x - 0.3)), 0.75, 0.15 + 0.3 * x, 0.15)  # roof
    paint((abs(x - 0.36) < 0.035) & (abs(y - 0.62) < 0.04), 0.15, 0.25, 0.6)  # window
    return np.round(255 * np.clip(scene, 0, 1)).astype(np.uint8)

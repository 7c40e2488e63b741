"""pytest tests/train/test_validate.py"""

import pytest

from ev2 import errors
from ev2.train import validate as check
from tests.helpers import tiny_run as tiny


def test_recipes_pass():
    check.check(tiny.make_config())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("eval.image_size", 0),
        ("eval.batch_size", 0),
        ("eval.every_epochs", float("nan")),
        ("checkpoint.keep", 0),
        ("checkpoint.every_steps", -1),
        ("ema.decay", 1.0),
        ("model.bn_momentum", -0.1),
        ("loss.label_smoothing", 1.0),
        ("loss.mix_group_images", 2),  # half a group of one has nobody to mix with
        ("loss.mix_group_images", 6),
        ("data.std", (128.0, 0.0, 128.0)),
        ("data.mean", (1.0, 2.0)),
        ("data.eval_crop_padding", -1),
    ],
)
def test_values_out_of_range_are_named(key, value):
    with pytest.raises(errors.InputError, match=f"^{key}: "):
        check.check(tiny.make_config(**{key: value}))

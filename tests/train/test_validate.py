"""pytest tests/train/test_validate.py

Allowed values: every key has a rule; a refusal names key, value and what is allowed.
"""

import dataclasses
import math

import pytest

from ev2 import errors, progressive
from ev2.config import default_config
from ev2.train import plan, validate, workdir
from tests.helpers import tiny_run

# Keys that are free text or switches, or are checked where they are used.
FREE = {
    *("recipe", "model.name", "model.blocks", "model.padding", "model.remat"),
    *("data.name", "data.path", "data.train_split", "data.eval_split", "data.flip"),
    *("progressive.adaptive", "progressive.batch_size", "progressive.prepare_ahead"),
    *("ema.warmup", "eval.split", "init.checkpoint", "init.freeze_bn"),
}


def refusal(**changes):
    config = tiny_run.make_config(
        **{key.replace("__", "."): value for key, value in changes.items()}
    )
    with pytest.raises(errors.InputError) as caught:
        validate.check_config(config)
    return str(caught.value)


def test_every_key_has_a_rule():
    validate.check_config(default_config())
    keys = set(workdir.flatten(default_config().to_dict(), "."))
    strengths = {f"progressive.{s.name}" for s in progressive.STRENGTHS}
    assert keys - FREE == set(validate.RULES) | strengths


@pytest.mark.parametrize("value", [["?"], None])
@pytest.mark.parametrize("key", validate.RULES)
def test_every_rule_refuses_another_type(key, value):
    config = default_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(errors.InputError, match=f"^{key}: .* is not allowed; give "):
        validate.check_config(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**32),
        ("eval.every_epochs", math.nan),
        ("ema.decay", 1.0),
        ("model.bn_momentum", -0.1),
        ("loss.label_smoothing", 1.0),
        ("loss.mix_group_images", 2),  # half a group of one has nobody to mix with
        ("loss.mix_group_images", 6),
        ("data.std", (128.0, 0.0, 128.0)),
        ("data.mean", (1.0, 2.0)),
        ("progressive.image_size", (0, 300)),
        ("progressive.image_size", (128, 300.5)),
        ("progressive.image_size", (128, 185, 300)),
        ("progressive.image_size", (300, 128)),
        ("progressive.dropout", (0.1, 1.0)),
        ("progressive.drop_path", (-0.1, 0.2)),
        ("progressive.randaugment", (5.0, -1.0)),
        ("progressive.mixup", (0.0, math.nan)),
        ("progressive.cutmix", (0.2,)),
        ("progressive.batch_size", (64, 64, 64)),
        ("progressive.batch_size", (64, 0)),
        ("data.crop_area", (0.5, 0.2)),
        ("data.crop_area", (0.5, 1.2)),
        ("optimizer.momentum", 1.0),
        ("optimizer.decay_epochs", 0.0),
        ("init.layer_decay", 1.5),
        ("init.freeze", "head"),
        ("stall_seconds", math.inf),
    ],
)
def test_values_out_of_range_are_named(key, value):
    assert refusal(**{key: value}).startswith(f"{key}: {value!r} is not allowed; give ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"epochs": 1.0},
            "epochs: 1.0 and steps: 8; exactly one of the two must be above 0, set the "
            "other to 0",
        ),
        ({"steps": 0}, "epochs: 0.0 and steps: 0; exactly one"),
        (
            {"progressive.schedule": "linear"},
            "progressive.schedule: 'linear' is not allowed; give one of 'progressive', "
            "'random', 'fixed'",
        ),
        (
            {"progressive.dropout": (0.1, 1.0)},
            "progressive.dropout: (0.1, 1.0) is not allowed; give a pair (first stage, "
            "last stage) of numbers, 0 to below 1",
        ),
        ({"eval.split": "minival"}, "eval.split: 'minival' is not allowed"),
        ({"init.freeze": "backbone"}, "init.freeze: 'backbone' is not allowed"),
        ({"init.freeze_bn": True}, "init.freeze_bn: True is not allowed"),
        ({"model.name": "efficientnetv2-xxl"}, "model.name: 'efficientnetv2-xxl'"),
    ],
)
def test_values_that_do_not_fit_together_are_named(changes, message):
    assert refusal(**changes).startswith(message)


def test_a_new_strength_is_added_in_one_place(monkeypatch):
    """Config, validation, stages and plan take a strength from the one table."""
    cutout = progressive.Strength(
        name="cutout",
        label="cutout",
        unit="fraction",
        meaning="side",
        default=(0.0, 0.5),
        limit=1.0,
    )
    table = (*progressive.STRENGTHS, dataclasses.replace(cutout, in_step=False))
    monkeypatch.setattr(progressive, "STRENGTHS", table)
    config = default_config()
    assert config.progressive.cutout == (0.0, 0.5)
    config.data.num_train_images = 1_281_167
    planned = plan.make_plan(config)
    assert [s["strengths"]["cutout"] for s in planned["stages"]][::3] == [0.0, 0.5]
    assert "cutout" in plan.format_table(planned)
    config.progressive.cutout = (0.0, 1.0)
    with pytest.raises(errors.InputError, match="progressive.cutout: "):
        validate.check_config(config)

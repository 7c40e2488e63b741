"""Allowed values of every config key: one table, walked once before a run is set up.

Values that depend on the data (counts, splits, class names) are checked where the data
are opened; names of networks and block strings in `models.arch`.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ev2 import errors, progressive
from ev2.models import arch
from ev2.train import early_stopping


class Rule(NamedTuple):
    """Accepted values of a key, and the sentence that names them in a refusal."""

    accepts: Callable[[Any], bool]
    allowed: str


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _integer(low: int, high: float = math.inf) -> Rule:
    limit = f"to {high}" if high < math.inf else "or more"
    return Rule(
        lambda v: _is_number(v) and isinstance(v, int) and low <= v <= high,
        f"a whole number, {low} {limit}",
    )


def _choice(*values: str) -> Rule:
    return Rule(lambda v: v in values, f"one of {', '.join(map(repr, values))}")


def _numbers(count: int, accepts: Callable[[Any], bool], allowed: str) -> Rule:
    """A sequence of `count` numbers, each of which is accepted."""

    def accepts_all(value: Any) -> bool:
        is_sequence = isinstance(value, list | tuple) and len(value) == count
        return is_sequence and all(_is_number(v) and accepts(v) for v in value)

    return Rule(accepts_all, allowed)


def _range(highest: float) -> Rule:
    """A pair (low, high) with 0 < low <= high <= highest."""
    pair = _numbers(2, lambda v: 0 < v <= highest, "")
    return Rule(
        lambda v: pair.accepts(v) and v[0] <= v[1],
        f"(low, high) with 0 < low <= high <= {highest}",
    )


def _strength(strength: progressive.Strength) -> Rule:
    limit = f"to below {strength.limit:g}" if strength.limit < math.inf else "or more"
    return _numbers(
        2,
        lambda v: 0 <= v < strength.limit,
        f"a pair (first stage, last stage) of numbers, 0 {limit}",
    )


def _image_size(value: Any) -> bool:
    smallest = progressive.MIN_IMAGE_SIZE
    pair = _numbers(2, lambda v: isinstance(v, int) and v >= smallest, "")
    return pair.accepts(value) and value[0] <= value[1]


_FRACTION = Rule(lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
_FROM_ZERO = Rule(lambda v: _is_number(v) and v >= 0, "a number, 0 or more")
_ABOVE_ZERO = Rule(lambda v: _is_number(v) and v > 0, "a number above 0")
_BOOL = Rule(lambda v: isinstance(v, bool), "True or False")

RULES = {
    "seed": _integer(0, 2**32 - 1),
    "batch_size": _integer(1),
    "epochs": _FROM_ZERO,
    "steps": _integer(0),
    "stall_seconds": Rule(
        lambda v: _is_number(v) and 0 <= v <= 1e6, "seconds, 0 (never) to 1e6"
    ),
    "model.dtype": _choice(*arch.DTYPES),
    "model.bn_momentum": _FRACTION,
    "model.bn_group_images": _integer(0),
    "data.source": _choice(
        "embedded", "tfds", "folder", "csv", "tar", "tfrecord", "synthetic"
    ),
    "data.num_train_images": _integer(0),
    "data.num_eval_images": _integer(0),
    "data.num_classes": _integer(0),
    "data.max_labels": _integer(1),
    "data.mean": _numbers(3, lambda v: True, "three numbers, for red, green and blue"),
    "data.std": _numbers(
        3, lambda v: v > 0, "three numbers above 0, for red, green and blue"
    ),
    "data.interpolation": _choice("bilinear", "bicubic"),
    "data.crop_area": _range(1.0),
    "data.crop_aspect": _range(math.inf),
    "data.augment": _choice("randaugment", "autoaugment", "none"),
    "data.randaugment_variant": _choice("standard", "released"),
    "data.randaugment_layers": _integer(0),
    "data.cutout": Rule(
        lambda v: _is_number(v) and 0 <= v <= 1, "0 (off) to 1, of the image's side"
    ),
    "data.eval_crop": _choice("resize", "center"),
    "data.eval_crop_padding": _integer(0),
    "data.exif": _BOOL,
    "data.eval_fraction": Rule(
        lambda v: _is_number(v) and 0 < v < 1, "a number between 0 and 1"
    ),
    "data.workers": _integer(0),
    "progressive.schedule": _choice(*progressive.SCHEDULES),
    "progressive.stages": _integer(1),
    "progressive.image_size": Rule(
        _image_size,
        f"(smaller, larger) in px, {progressive.MIN_IMAGE_SIZE} or more",
    ),
    "progressive.size_rule": _choice(*progressive.SIZE_RULES),
    "progressive.random_epochs": _ABOVE_ZERO,
    "loss.label_smoothing": _FRACTION,
    "loss.mix_group_images": _integer(0),
    "optimizer.name": _choice("rmsprop"),
    "optimizer.schedule": _choice("exponential", "cosine", "constant"),
    "optimizer.lr": _FROM_ZERO,
    "optimizer.warmup_epochs": _FROM_ZERO,
    "optimizer.decay_rate": _ABOVE_ZERO,
    "optimizer.decay_epochs": _ABOVE_ZERO,
    "optimizer.decay": _FRACTION,
    "optimizer.momentum": _FRACTION,
    "optimizer.epsilon": _ABOVE_ZERO,
    "optimizer.weight_decay": _FROM_ZERO,
    "optimizer.clip_norm": _FROM_ZERO,
    "ema.decay": _FRACTION,
    "eval.image_size": _integer(progressive.MIN_IMAGE_SIZE),
    "eval.batch_size": _integer(1),
    "eval.every_epochs": Rule(_FROM_ZERO.accepts, "0 (each stage's end) or more"),
    "eval.metric": _choice(*early_stopping.METRICS),
    "eval.patience": _integer(0),
    "init.weights": _choice("ema", "raw"),
    "init.freeze": _choice("", "backbone"),
    "init.layer_decay": Rule(
        lambda v: _is_number(v) and 0 < v <= 1, "a number above 0, to 1 (off)"
    ),
    "checkpoint.every_steps": _integer(0),
    "checkpoint.keep": _integer(1),
    "checkpoint.keep_best": _integer(1),
    "log.every_steps": _integer(0),
}
# Keys of `config.data` that a config may leave to `init.checkpoint`, by an empty value.
LEFT_TO_CHECKPOINT = {"mean": (), "std": (), "interpolation": ""}
_NAMED_SPLITS = ("tfds", "tfrecord", "embedded")  # sources with more than two splits


def check_config(config: Any) -> None:
    """Raises InputError for a value that no run could use: key, value, what is allowed.

    Needs no data and no device.
    """
    check_recipe(config)
    strengths = {f"progressive.{s.name}": _strength(s) for s in progressive.STRENGTHS}
    for key, rule in {**RULES, **strengths}.items():
        value = _value(config, key)
        section, _, name = key.rpartition(".")
        is_left = section == "data" and name in LEFT_TO_CHECKPOINT
        if is_left and value == LEFT_TO_CHECKPOINT[name]:
            continue  # see `train.initialize`
        if not rule.accepts(value):
            _refuse(key, value, rule.allowed)
    model = config.model
    arch.get(model.name, tuple(model.blocks), model.padding)
    _check_together(config)


def _check_together(config: Any) -> None:
    """Checks values that must fit one another."""
    if bool(config.epochs) == bool(config.steps):
        raise errors.InputError(
            f"epochs: {config.epochs!r} and steps: {config.steps!r}; exactly one of "
            "the two must be above 0, set the other to 0"
        )
    batch_sizes, stages = config.progressive.batch_size, config.progressive.stages
    every = _integer(1).accepts
    if batch_sizes and not (
        len(batch_sizes) == stages and all(map(every, batch_sizes))
    ):
        _refuse(
            "progressive.batch_size",
            batch_sizes,
            f"a whole number, 1 or more, for each of the {stages} stages, or () to use "
            "batch_size for all",
        )
    group = config.loss.mix_group_images
    if mixes(config) and (group < 4 or group % 4):
        # Half a group must have partners to swap with.
        _refuse("loss.mix_group_images", group, "a multiple of 4, with mixup or CutMix")
    if config.eval.split and config.data.source not in _NAMED_SPLITS:
        sources = " or ".join(_NAMED_SPLITS)
        _refuse("eval.split", config.eval.split, f"'' without data.source {sources}")
    init = config.init
    if init.layer_decay < 1 and init.freeze:
        _refuse(
            "init.layer_decay", init.layer_decay, "1: with init.freeze no stage learns"
        )
    if init.freeze and not init.checkpoint:
        _refuse("init.freeze", init.freeze, "'' without init.checkpoint")
    if init.freeze_bn and not init.checkpoint:
        _refuse("init.freeze_bn", init.freeze_bn, "False without init.checkpoint")


def check_recipe(config: Any) -> None:
    """Raises InputError if the config is that of a chain or a search, not a recipe."""
    if "links" in config:
        raise errors.InputError("config: this is a chain of recipes; ev2 chain runs it")
    if "controller" in config:
        raise errors.InputError("config: this is a search; ev2 search runs it")


def check_batches(config: Any, batch_sizes: Iterable[int], num_devices: int) -> None:
    """Raises InputError if a global batch cannot be divided as the step divides it.

    Args:
        config: keys `model.bn_group_images`, `loss.mix_group_images`, `progressive`.
        batch_sizes: global images of the stages.
        num_devices: over which a batch is split.
    """
    group = config.loss.mix_group_images if mixes(config) else 0
    divisors = (
        ("batch_size", num_devices, "devices"),
        ("model.bn_group_images", config.model.bn_group_images, "images per group"),
        ("loss.mix_group_images", group, "images per group"),
    )
    for batch_size in sorted(set(batch_sizes)):
        for key, divisor, unit in divisors:
            if divisor and batch_size % divisor:
                near = max(batch_size // divisor, 1) * divisor
                raise errors.InputError(
                    f"{key}: a global batch of {batch_size} images does not divide by "
                    f"{divisor} {unit}; {near} does"
                )


def mixes(config: Any) -> bool:
    """Returns True if any stage has mixup or CutMix."""
    return max(*config.progressive.mixup, *config.progressive.cutmix) > 0


def _value(config: Any, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return config[section][name] if section else config[name]


def _refuse(key: str, value: Any, allowed: str) -> None:
    raise errors.InputError(f"{key}: {value!r} is not allowed; give {allowed}")

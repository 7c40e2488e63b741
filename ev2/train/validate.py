"""What a config's plain values may be; asked by `plan` and by `train` alike.

What belongs to one subject is checked there: the schedule in `progressive`, the
optimizer in `optim`, names and blocks in `arch`, pictures in `data`.
"""

import math
from typing import Any

from ev2 import errors
from ev2.models import arch
from ev2.train import early_stopping as watch

# Key: lowest and highest allowed whole number.
_WHOLE = {
    "seed": (0, 2**32 - 1),
    "model.bn_group_images": (0, math.inf),
    "data.num_train_images": (0, math.inf),
    "data.num_eval_images": (0, math.inf),
    "data.num_classes": (0, math.inf),
    "data.max_labels": (1, math.inf),
    "data.randaugment_layers": (0, math.inf),
    "data.eval_crop_padding": (0, math.inf),
    "data.workers": (0, math.inf),
    "loss.mix_group_images": (0, math.inf),
    "eval.image_size": (8, math.inf),
    "eval.batch_size": (1, math.inf),
    "checkpoint.every_steps": (0, math.inf),
    "eval.patience": (0, math.inf),
    "checkpoint.keep": (1, math.inf),
    "checkpoint.keep_best": (1, math.inf),
    "log.every_steps": (0, math.inf),
}
# Key: shares, from 0 to below 1.
_SHARES = ("model.bn_momentum", "loss.label_smoothing", "ema.decay")
_NAMED_SPLITS = ("tfds", "tfrecord", "embedded")  # sources with more than two splits
_CHANNELS = {"data.mean": -math.inf, "data.std": 0.0}  # three numbers above this


def check(config: Any) -> None:
    """Raises InputError for a value that no run could use, naming key and range."""
    check_recipe(config)
    for key, (low, high) in _WHOLE.items():
        value = _value(config, key)
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse(key, value, "a whole number")
        if not low <= value <= high:
            limit = f" to {high}" if high < math.inf else " or more"
            _refuse(key, value, f"{low}{limit}")
    for key in _SHARES:
        value = _value(config, key)
        if not _is_number(value) or not 0 <= value < 1:
            _refuse(key, value, "a number from 0 to below 1")
    errors.check_choice("model.dtype", config.model.dtype, arch.DTYPES)
    every = config.eval.every_epochs
    if not _is_number(every) or every < 0:
        _refuse("eval.every_epochs", every, "0 (each stage's end) or more")
    errors.check_choice("eval.metric", config.eval.metric, watch.METRICS)
    if config.eval.metric.endswith(".map") and config.data.max_labels == 1:
        _refuse("eval.metric", config.eval.metric, "ema.top1 with data.max_labels 1")
    if config.eval.split and config.data.source not in _NAMED_SPLITS:
        sources = " or ".join(_NAMED_SPLITS)
        _refuse("eval.split", config.eval.split, f"'' without data.source {sources}")
    for key, above in _CHANNELS.items():
        value = _value(config, key)
        if len(value) == 0:
            continue  # the checkpoint's; see `initial.open_source`
        if len(value) != 3 or not all(_is_number(v) and v > above for v in value):
            positive = " above 0" if above == 0 else ""
            _refuse(key, value, f"three numbers{positive}, for red, green and blue")
    group = config.loss.mix_group_images
    if mixes(config) and (group < 4 or group % 4):
        # Half a group must have partners to swap with.
        _refuse("loss.mix_group_images", group, "a multiple of 4, with mixup or CutMix")


def check_recipe(config: Any) -> None:
    """Raises InputError if the config is a chain's or a search's, and no recipe."""
    if "links" in config:
        raise errors.InputError("config: this is a chain of recipes; ev2 chain runs it")
    if "controller" in config:
        raise errors.InputError("config: this is a search; ev2 search runs it")


def check_stall(seconds: Any) -> None:
    """Raises InputError if `stall_seconds` is no time to wait."""
    if not _is_number(seconds) or seconds < 0:
        _refuse("stall_seconds", seconds, "0 (never) or more")


def check_init(init: Any) -> None:
    """Raises InputError for a value of `config.init` that no run could use."""
    errors.check_choice("init.weights", init.weights, ("ema", "raw"))
    errors.check_choice("init.freeze", init.freeze, ("", "backbone"))
    decay = init.layer_decay
    if not _is_number(decay) or not 0 < decay <= 1:
        _refuse("init.layer_decay", decay, "a number above 0, to 1 (off)")
    if init.layer_decay < 1 and init.freeze:
        _refuse("init.layer_decay", decay, "1: with init.freeze no stage learns")
    if init.freeze and not init.checkpoint:
        _refuse("init.freeze", init.freeze, "'' without init.checkpoint")
    if init.freeze_bn and not init.checkpoint:
        _refuse("init.freeze_bn", init.freeze_bn, "False without init.checkpoint")


def mixes(config: Any) -> bool:
    """Whether any stage has mixup or CutMix."""
    values = (*config.progressive.mixup, *config.progressive.cutmix)
    return any(_is_number(value) and value > 0 for value in values)


def _value(config: Any, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return config[section][name] if section else config[name]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _refuse(key: str, value: Any, allowed: str) -> None:
    raise errors.InputError(f"{key}: {value!r} is not allowed; give {allowed}")

"""Starts a run from trained weights, with their classifier or a new one."""

import copy
import dataclasses
import os
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from ev2 import errors
from ev2.checkpoint import class_names, manager, pretrained
from ev2.data import imagenet_classes
from ev2.models import arch
from ev2.models.model import Model
from ev2.train import workdir as workdirs
from ev2.train.validate import LEFT_TO_CHECKPOINT

REQUIRED = "required"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialCheckpoint:
    """The checkpoint of `init.checkpoint`, read into memory."""

    path: str
    weights: str  # "ema" | "raw"
    model: Model
    variables: dict[str, Any]  # {"params", "batch_stats"}, float32 NumPy arrays
    metadata: dict[str, Any]


def open_checkpoint(
    config: ConfigDict, workdir: str
) -> tuple[ConfigDict, InitialCheckpoint | None]:
    """Returns the config with every value filled in, and the checkpoint to start from.

    The checkpoint is None without `init.checkpoint`, and for a run that has saved a
    checkpoint of its own. A resumed run takes the values that it began with from its
    config.json, so the initial checkpoint may be gone by then.

    Args:
        config: keys `init.*` and those of `LEFT_TO_CHECKPOINT`.
        workdir: folder of the run.

    Raises:
        InputError: there is no checkpoint where one is needed, or none at the path.
    """
    path = config.init.checkpoint
    if path == REQUIRED:
        raise errors.InputError(
            "init.checkpoint: this recipe starts from trained weights; give a run, "
            "weights that `ev2 convert` wrote, or a published file"
        )
    saved = workdirs.read_config(workdir)
    if not path or manager.exists(workdir):
        return fill(config, saved["data"] if saved else None), None
    weights = config.init.weights
    model, variables, metadata = pretrained.load_pretrained(path, weights=weights)
    checkpoint = InitialCheckpoint(
        path=os.fspath(path),
        weights=weights,
        model=model,
        variables=variables,
        metadata=metadata,
    )
    config = fill(config, saved["data"] if saved else metadata["preprocessing"])
    _warn_of_other_preprocessing(config, checkpoint)
    return config, checkpoint


def fill(config: ConfigDict, values: dict[str, Any] | None) -> ConfigDict:
    """Returns the config with `data.mean`, `std` and `interpolation` filled in.

    Args:
        config: any; values that are not empty are kept.
        values: the checkpoint's, by key; None where there is no checkpoint.

    Raises:
        InputError: a value is empty and there is no checkpoint.
    """
    filled = copy.deepcopy(config)
    for key, empty in LEFT_TO_CHECKPOINT.items():
        if config.data[key] != empty:
            continue
        if values is None:
            raise errors.InputError(
                f"data.{key}: {empty!r} stands for the value of init.checkpoint, which "
                "is not given; give one of the two"
            )
        filled.data[key] = _as_tuple(values[key])
    return filled


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _warn_of_other_preprocessing(
    config: ConfigDict, checkpoint: InitialCheckpoint
) -> None:
    for key, empty in LEFT_TO_CHECKPOINT.items():
        trained_with = _as_tuple(checkpoint.metadata["preprocessing"][key])
        if config.data[key] != trained_with:
            logging.warning(
                "data.%s is %s, but the weights of %s were trained with %s; data.%s=%r "
                "takes the checkpoint's value",
                *(key, config.data[key], checkpoint.path, trained_with, key, empty),
            )


def select_weights(
    model: Model, names: tuple[str, ...], checkpoint: InitialCheckpoint
) -> tuple[dict[str, Any], str]:
    """Returns the weights that `model` starts from, and a description of them.

    The parameters lack "classifier" if the checkpoint's classes differ from `names` in
    number, in a name or in order. Where one side has numbers for names, its classes
    are taken to be those of the other side.

    Args:
        model: the network of the run.
        names: of its classes.
        checkpoint: from `open_checkpoint`.

    Raises:
        InputError: the checkpoint holds another network.
    """
    _check_network(model, checkpoint)
    variables = dict(checkpoint.variables)
    kind = {"ema": "EMA", "raw": "raw"}[checkpoint.weights]
    if checkpoint.metadata["config"] is None:
        kind = "only"  # published weights come in one set
    reason = _why_new_classifier(names, tuple(checkpoint.metadata["class_names"]))
    if reason:
        params = variables["params"]
        variables["params"] = {k: v for k, v in params.items() if k != "classifier"}
    classifier = f"a new classifier: {reason}" if reason else "its classifier"
    return variables, f"from the {kind} weights of {checkpoint.path}, with {classifier}"


def _check_network(model: Model, checkpoint: InitialCheckpoint) -> None:
    for key, read in {
        "name": lambda m: m.name,
        "padding": lambda m: m.arch.padding,
        "blocks": lambda m: arch.encode(m.arch.stages),
    }.items():
        given, wanted = read(checkpoint.model), read(model)
        if given != wanted:
            raise errors.InputError(
                f"init.checkpoint: {checkpoint.path!r} holds another network, with "
                f"{key} {given!r} where this run has {wanted!r}; give a checkpoint of "
                f"the same network, or model.{key}"
            )


def _why_new_classifier(names: tuple[str, ...], saved: tuple[str, ...]) -> str:
    """The reason why a classifier of the classes `saved` does not fit, or ""."""
    if len(names) != len(saved):
        return f"{len(names):,} classes, there {len(saved):,}"
    unnamed = imagenet_classes.default_class_names(len(names))
    indices = class_names.find(names, saved)
    if unnamed in (names, saved) or indices == list(range(len(names))):
        return ""
    first = next(i for i, index in enumerate(indices) if index != i)
    return f"class {first} is {names[first]!r}, there {saved[first]!r}"


def start_from(state: Any, weights: dict[str, Any], layout: Any) -> Any:
    """Returns a fresh state with `weights` as its raw and EMA weights.

    Args:
        state: `state.TrainState`; parameters that `weights` lacks are kept.
        weights: from `select_weights`.
        layout: sharding of every array.
    """
    params = {**state.params, **jax.device_put(weights["params"], layout)}
    stats = jax.device_put(weights["batch_stats"], layout)
    # A copy: the state is donated, and no buffer may be donated twice.
    ema = jax.tree.map(jax.numpy.copy, {"params": params, "batch_stats": stats})
    return dataclasses.replace(state, params=params, batch_stats=stats, ema=ema)

"""What a run starts from: trained weights, what they expect, a classifier for them."""

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
from ev2.train import workdir as run_folder

# What a config may leave to the checkpoint: its empty value, of `config.data`.
_LEFT_OPEN = {"mean": (), "std": (), "interpolation": ""}
REQUIRED = "required"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint that a run starts from."""

    path: str
    weights: str  # "ema" | "raw"
    model: Model
    variables: dict[str, Any]  # {"params", "batch_stats"}, float32 NumPy arrays
    meta: dict[str, Any]


def open_source(config: ConfigDict, workdir: str) -> tuple[ConfigDict, Source | None]:
    """Returns the config with nothing left open, and the checkpoint to start from.

    A run that has a checkpoint of its own needs no other: then, as without
    `init.checkpoint`, there is None. What such a run's config leaves open is what it
    began with, so the checkpoint may be gone by then.

    Args:
      config: keys `init.*`, and `data.mean`, `std` and `interpolation`, which may be
        left to the checkpoint.
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
    source = None
    if path and not manager.exists(workdir):
        source = _read(path, config.init.weights)
    begun = run_folder.read_config(workdir)
    known = source.meta["preprocessing"] if source else None
    config = fill(config, begun["data"] if begun else known)
    if source is not None:
        _say_differing(config, source)
    return config, source


def _read(path: str, weights: str) -> Source:
    model, variables, meta = pretrained.load_pretrained(path, weights=weights)
    return Source(
        path=os.fspath(path),
        weights=weights,
        model=model,
        variables=variables,
        meta=meta,
    )


def fill(config: ConfigDict, known: dict[str, Any] | None) -> ConfigDict:
    """Returns the config with `data.mean`, `std` and `interpolation` not left open.

    Args:
      config: any.
      known: those values of the checkpoint; None where there is none.

    Raises:
      InputError: something is left open and there is no checkpoint.
    """
    filled = copy.deepcopy(config)
    for key, empty in _LEFT_OPEN.items():
        if config.data[key] != empty:
            continue
        if known is None:
            raise errors.InputError(
                f"data.{key}: {empty!r} is init.checkpoint's, and there is none; give "
                "one of the two"
            )
        value = known[key]
        filled.data[key] = tuple(value) if isinstance(value, list) else value
    return filled


def _say_differing(config: ConfigDict, source: Source) -> None:
    for key, empty in _LEFT_OPEN.items():
        theirs = source.meta["preprocessing"][key]
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        if config.data[key] != theirs:
            logging.warning(
                "data.%s is %s, but the weights of %s were trained with %s; %r takes "
                "that",
                *(key, config.data[key], source.path, theirs, empty),
            )


def weights_for(
    model: Model, names: tuple[str, ...], source: Source
) -> tuple[dict[str, Any], str]:
    """Returns the weights of `source` that `model` starts from, and what they are.

    The former are without "classifier" among the parameters if that is of other
    classes: of another number, or of other names, or of the same in another order.
    Numbers in place of names, on one side, are taken for the names of the other.

    Args:
      model: the network of the run.
      names: of its classes.
      source: from `open_source`.

    Raises:
      InputError: the source is of another network.
    """
    _check_network(model, source)
    variables = dict(source.variables)
    which = {"ema": "averaged", "raw": "raw"}[source.weights]
    if source.meta["config"] is None:
        which = "only"
    reason = _why_new_head(names, tuple(source.meta["class_names"]))
    if reason:
        params = variables["params"]
        variables["params"] = {k: v for k, v in params.items() if k != "classifier"}
    head = f"a new classifier: {reason}" if reason else "its classifier"
    return variables, f"from the {which} weights of {source.path}, with {head}"


def _check_network(model: Model, source: Source) -> None:
    for key, value in {
        "name": lambda m: m.name,
        "padding": lambda m: m.arch.padding,
        "blocks": lambda m: arch.encode(m.arch.stages),
    }.items():
        theirs, ours = value(source.model), value(model)
        if ours != theirs:
            raise errors.InputError(
                f"init.checkpoint: {source.path!r} is of another network, with {key} "
                f"{theirs!r} where this run has {ours!r}; give a checkpoint of the "
                f"same network, or model.{key}"
            )


def _why_new_head(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """Why the classifier of `theirs` does not serve `ours`; "" if it does."""
    if len(ours) != len(theirs):
        return f"{len(ours):,} classes, there {len(theirs):,}"
    unnamed = imagenet_classes.default_class_names(len(ours))
    found = class_names.find(ours, theirs)
    if unnamed in (ours, theirs) or found == list(range(len(ours))):
        return ""
    place = next(i for i, at in enumerate(found) if at != i)
    return f"class {place} is {ours[place]!r}, there {theirs[place]!r}"


def start_from(state: Any, weights: dict[str, Any], layout: Any) -> Any:
    """Returns a fresh state with `weights` in it, and in its averages.

    Args:
      state: `state.TrainState`; what `weights` does not hold is kept.
      weights: from `weights_for`.
      layout: sharding of every array.
    """
    params = {**state.params, **jax.device_put(weights["params"], layout)}
    stats = jax.device_put(weights["batch_stats"], layout)
    # A copy: the state is donated, and no buffer may be donated twice.
    averages = jax.tree.map(jax.numpy.copy, {"params": params, "batch_stats": stats})
    return dataclasses.replace(state, params=params, batch_stats=stats, ema=averages)

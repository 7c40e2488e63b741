"""Reads sweep files: config keys and the values that trials give them.

    def get_sweep():
        return {
            "method": "tpe",                # or "grid", "random"
            "trials": 12,                   # not for a grid, which has all its points
            "keys": {
                "optimizer.lr": {"low": 0.01, "high": 0.08, "log": True},
                "progressive.image_size": [(16, 28), (20, 28)],
            },
        }

A list holds the values to choose from. A dict is a range that includes "low" and
"high"; "log" draws evenly over orders of magnitude, "step" allows low, low + step, ...
only. Further entries, with their defaults:

    "seed": 0                   of random and tpe
    "score": "ema.top1"         in eval.json and in the lines "eval" of metrics.jsonl
    "goal": "maximize"          or "minimize"
    "prune": "none"             or "median", "asha": by the score of each evaluation
    "prune_after": 1            the first evaluation after which a trial may be ended
"""

import dataclasses
import difflib
import importlib.util
import itertools
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import optuna

from ev2 import errors
from ev2.train import workdir

METHODS = ("grid", "random", "tpe")
PRUNERS = ("none", "median", "asha")
GOALS = ("maximize", "minimize")
_NEAREST = 3
_MOST_POINTS = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included; integers if both are ints."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep; `keys` map to a Range or to the values to choose from."""

    method: str
    keys: Mapping[str, Range | tuple[Any, ...]]
    trials: int = 0
    seed: int = 0
    score: str = "ema.top1"
    goal: Literal["maximize", "minimize"] = "maximize"
    prune: str = "none"
    prune_after: int = 1


def load(path: str) -> Sweep:
    """Reads a sweep file.

    Raises:
      InputError: the file cannot be read, or its sweep is not allowed.
    """
    if not pathlib.Path(path).is_file():
        raise errors.InputError(
            f"sweep: there is no file {path!r}; give one such as configs/sweeps/demo.py"
        )
    spec = importlib.util.spec_from_file_location("sweep_file", path)
    if spec is None or spec.loader is None:
        raise errors.InputError(f"sweep: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        given = module.get_sweep()
    except Exception as error:  # from any code of the file
        raise errors.InputError(
            f"sweep: {path!r} failed: {type(error).__name__}: {error}; it needs a "
            "get_sweep() that returns a dict"
        ) from error
    return parse(given)


def parse(given: Any) -> Sweep:
    """Returns the sweep that the dict `given` describes.

    Raises:
      InputError: an entry is missing or unknown, or its value is not allowed.
    """
    if not isinstance(given, dict):
        _refuse("get_sweep()", given, "a dict")
    entries = [field.name for field in dataclasses.fields(Sweep)]
    for entry in given:
        errors.check_choice("sweep: entry", entry, entries)
    keys = given.get("keys")
    if not isinstance(keys, dict) or not keys:
        _refuse("keys", keys, "a dict of config keys, not empty")
    assert isinstance(keys, dict)
    keys = {str(key): _parse_values(str(key), value) for key, value in keys.items()}
    sweep = Sweep(**{"method": None, **given, "keys": keys})
    errors.check_choice("sweep: method", sweep.method, METHODS)
    errors.check_choice("sweep: prune", sweep.prune, PRUNERS)
    errors.check_choice("sweep: goal", sweep.goal, GOALS)
    if not isinstance(sweep.score, str) or not sweep.score:
        _refuse("score", sweep.score, "a name such as 'ema.top1'")
    for name, low in (("seed", 0), ("prune_after", 1)):
        value = getattr(sweep, name)
        if not _is_whole(value) or value < low:
            _refuse(name, value, f"a whole number, {low} or more")
    return _count(sweep, has_trials="trials" in given)


def _count(sweep: Sweep, *, has_trials: bool) -> Sweep:
    """Sets the number of trials of a grid; checks it for other methods."""
    if sweep.method != "grid":
        if not _is_whole(sweep.trials) or not 1 <= sweep.trials <= _MOST_POINTS:
            _refuse("trials", sweep.trials, f"1 to {_MOST_POINTS}")
        return sweep
    for key, values in sweep.keys.items():
        if isinstance(values, Range):
            _refuse(f"keys[{key!r}]", values, "a list, as a grid needs")
    size = math.prod(len(values) for values in sweep.keys.values())  # type: ignore
    if has_trials and sweep.trials != size:
        _refuse("trials", sweep.trials, f"nothing: this grid has {size} points")
    if size > _MOST_POINTS:
        _refuse("keys", f"{size} points", f"up to {_MOST_POINTS}")
    return dataclasses.replace(sweep, trials=size)


def _parse_values(key: str, given: Any) -> Range | tuple[Any, ...]:
    name = f"keys[{key!r}]"
    if isinstance(given, list):
        labels = [label(value) for value in given]
        if not given or len(set(labels)) != len(labels):
            _refuse(name, given, "a list of values, none of them twice, not empty")
        return tuple(given)
    needed, allowed = {"low", "high"}, {"low", "high", "log", "step"}
    if not isinstance(given, dict) or not needed <= given.keys() <= allowed:
        _refuse(name, given, "a list, or a dict with low, high, and maybe log or step")
    values = Range(**given)
    low, high, step = values.low, values.high, values.step
    if not (_is_number(low) and _is_number(high) and low < high):
        _refuse(name, given, "numbers, low below high")
    if not isinstance(values.log, bool) or (values.log and low <= 0):
        _refuse(name, given, "log=True or False, True with low above 0")
    if step is not None:
        fits = _is_whole(step) or not values.whole
        if not _is_number(step) or step <= 0 or values.log or not fits:
            _refuse(name, given, "a step above 0, whole like low and high, without log")
    return values


def fit(sweep: Sweep, config: Any) -> Sweep:
    """Returns the sweep with ranges of the types in the config.

    Raises:
      InputError: a key is not in the config, or a value has another type.
    """
    known = workdir.flatten(config.to_dict(), ".")
    keys = {}
    for key, values in sweep.keys.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=_NEAREST, cutoff=0)
            raise errors.InputError(
                f"sweep: key {key!r} is not in the config; nearest: {', '.join(near)}"
            )
        if isinstance(values, Range) and isinstance(known[key], float):
            bounds = {"low": float(values.low), "high": float(values.high)}
            values = dataclasses.replace(values, **bounds)
        keys[key] = values
        _check_type(config, key, values)
    return dataclasses.replace(sweep, keys=keys)


def _check_type(config: Any, key: str, values: Range | tuple[Any, ...]) -> None:
    for value in (values.low, values.high) if isinstance(values, Range) else values:
        trial = config.copy_and_resolve_references()
        *sections, name = key.split(".")
        section = trial
        for part in sections:
            section = section[part]
        kind = type(section[name])
        try:
            section[name] = value
        except (TypeError, ValueError) as error:
            raise errors.InputError(
                f"sweep: keys[{key!r}]: {value!r} is not allowed; give {kind.__name__}"
            ) from error


def points(sweep: Sweep) -> list[dict[str, Any]]:
    """Returns the fixed parameters of each trial: all in a grid, else none."""
    if sweep.method != "grid":
        return [{}] * sweep.trials
    labels = [map(label, values) for values in sweep.keys.values()]  # type: ignore
    return [
        dict(zip(sweep.keys, point, strict=True))
        for point in itertools.product(*labels)
    ]


def make_sampler(sweep: Sweep, index: int) -> optuna.samplers.BaseSampler:
    """Returns the sampler of a trial.

    The seed depends on the trial: workers suggest different values, and random values
    are the same on any machine.
    """
    seed = (sweep.seed * 1_000_003 + index) % 2**32
    if sweep.method == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def label(value: Any) -> Any:
    """Returns a value as a parameter that a storage accepts, which excludes tuples."""
    return value if isinstance(value, str | int | float | bool) else repr(value)


def decode(sweep: Sweep, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of parameters, the reverse of `label`."""
    decoded = dict(params)
    for key, param in params.items():
        values = sweep.keys[key]
        if not isinstance(values, Range):
            decoded[key] = values[[label(value) for value in values].index(param)]
    return decoded


def suggest(trial: Any, sweep: Sweep) -> dict[str, Any]:
    """Returns a value for each key, fixed or drawn by the sampler."""
    params = {}
    for key, values in sweep.keys.items():
        if not isinstance(values, Range):
            labels = [label(value) for value in values]
            params[key] = trial.suggest_categorical(key, labels)
            continue
        ask = trial.suggest_int if values.whole else trial.suggest_float
        step = {} if values.step is None else {"step": values.step}
        params[key] = ask(key, values.low, values.high, log=values.log, **step)
    return decode(sweep, params)


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Returns values as flags of the command line."""
    return [f"--config.{key}={_as_text(value)}" for key, value in values.items()]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _refuse(name: str, value: Any, allowed: str) -> None:
    raise errors.InputError(f"sweep: {name}: {value!r} is not allowed; give {allowed}")

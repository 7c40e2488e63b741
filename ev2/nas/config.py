"""Checks the config of a search before anything is written."""

import contextlib
import dataclasses
import json
import math
import pathlib
import random
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from ev2 import errors
from ev2.models import arch
from ev2.nas import controllers, proxy, reward, space
from ev2.tpu import compile as tpu_compile
from ev2.tpu import slices
from ev2.train import plan, validate

PRUNERS = ("none", "median")
# A space with at most this many networks per trial is counted network by network.
COUNTED_PER_TRIAL = 20
# Key: lowest and highest allowed whole number.
_WHOLE = {
    **{"trials": (1, 100_000), "seed": (0, 2**32 - 1), "retries": (0, 100)},
    **{"keep_best": (1, 1000), "step_time.image_size": (8, 10_000)},
    "step_time.batch_size": (1, 2**20),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """A checked search.

    Attributes:
        config: see configs/search.py.
        space: networks, with bounds on their parameters.
        reference: text of the network that rewards are relative to.
        num_classes: classes of the proxy's data.
        plan: plan of the proxy, see `plan.make_plan`.
    """

    config: ConfigDict
    space: space.Space
    reference: str
    num_classes: int
    plan: dict[str, Any]

    @property
    def document(self) -> dict[str, Any]:
        """Returns the search as JSON, for candidates' processes and for `restore`."""
        search = json.loads(self.config.to_json_best_effort())
        return {"search": search, "num_classes": self.num_classes, "table": self.plan}

    def make_reward(self, cost: dict[str, Any]) -> reward.Reward:
        """Returns the reward relative to the cost of the reference."""
        return reward.Reward(
            step_seconds=cost["step_seconds"],
            params=cost["params"],
            step_exponent=self.config.reward.step_exponent,
            params_exponent=self.config.reward.params_exponent,
        )


def check(config: ConfigDict, workdir: pathlib.Path) -> SearchSpec:
    """Checks a config and returns its search; compiles and writes nothing.

    Raises:
        InputError: the config is not a search, or a value is not allowed.
    """
    if "controller" not in config or "proxy" not in config:
        runs = "ev2 chain runs it" if "links" in config else "ev2 train runs it"
        raise errors.InputError(
            f"config: this is not a search ({runs}); give one such as "
            "configs/search.py:tiny"
        )
    try:
        _check_values(config)
        validate.check_recipe(config.proxy)
        from ev2.data import sources  # loads TensorFlow; workers need none
        from ev2.train import setup

        num_classes = sources.describe(config.proxy).num_classes
        networks = _make_space(config, num_classes)
    except errors.InputError:
        raise
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        # A missing key, or a value of another type than in configs/search.py.
        raise errors.InputError(
            f"config: {' '.join(map(str, error.args))}; see configs/search.py"
        ) from error
    sample = networks.sample(random.Random(config.seed))
    count = networks.size()
    if count <= COUNTED_PER_TRIAL * config.trials:
        count = networks.count_valid(config.trials)
    if config.trials > count:
        raise errors.InputError(
            f"trials: {config.trials:,} is not allowed; the space has {count:,} "
            "networks within its bounds, give at most as many"
        )
    text = networks.encode(sample)
    with _naming("proxy"):
        recipe = proxy.apply(config.proxy, text)
        proxy_plan = setup.set_up(recipe, str(workdir / "trials/new")).plan
    with _naming("full"):
        plan.make_plan(proxy.apply(config.full, text))
    return SearchSpec(
        config=config,
        space=networks,
        reference=encode_reference(config),
        num_classes=num_classes,
        plan=proxy_plan,
    )


def restore(document: dict[str, Any]) -> SearchSpec:
    """Returns the search that `SearchSpec.document` describes."""
    config = ConfigDict(document["search"], convert_dict=True)
    return SearchSpec(
        config=config,
        space=_make_space(config, document["num_classes"]),
        reference=encode_reference(config),
        num_classes=document["num_classes"],
        plan=document["table"],
    )


def _check_values(config: ConfigDict) -> None:
    for key, (low, high) in _WHOLE.items():
        value = config
        for part in key.split("."):
            value = value[part]
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse(key, value, "a whole number")
        if not low <= value <= high:
            _refuse(key, value, f"{low:,} to {high:,}")
    if not config.limit_minutes > 0:
        _refuse("limit_minutes", config.limit_minutes, "minutes above 0")
    errors.check_choice("controller", config.controller, controllers.NAMES)
    errors.check_choice("prune", config.prune, PRUNERS)
    for key in ("step_exponent", "params_exponent"):
        reward.check_exponent(f"reward.{key}", config.reward[key])
    models = arch.list_models()
    errors.check_choice("reward.reference", config.reward.reference, models)
    low, high = config.space.params
    if not 0 <= low <= high < math.inf or not high:
        allowed = "two fractions of the reference's, ascending"
        _refuse("space.params", (low, high), allowed)
    if config.prune != "none" and not config.proxy.eval.every_epochs:
        _refuse("prune", config.prune, "'none' where proxy.eval.every_epochs is 0")
    how = config.step_time
    errors.check_choice("step_time.source", how.source, proxy.SOURCES)
    if how.source == "compile":
        devices = slices.find(how.slice).devices
        validate.check_batches(config.proxy, {how.batch_size}, devices)
        tpu_compile.check_installed()


@contextlib.contextmanager
def _naming(section: str) -> Iterator[None]:
    """Prefixes the message of a bad key with its recipe."""
    try:
        yield
    except errors.InputError as error:
        raise errors.InputError(f"{section}: {error}") from error


def _make_space(config: ConfigDict, num_classes: int) -> space.Space:
    reference = arch.get(config.reward.reference)
    low, high = config.space.params
    params = arch.count_params(reference, num_classes)
    names = ("backbones", "operators", "layers", "kernels", "expands")
    return space.Space(
        **{key: tuple(config.space[key]) for key in names},
        min_params=round(low * params),
        max_params=max(1, round(high * params)),
        num_classes=num_classes,
    )


def encode_reference(config: ConfigDict) -> str:
    """Returns the text of the network that rewards are relative to."""
    reference = arch.get(config.reward.reference)
    return f"{reference.name}:{','.join(arch.encode(reference.stages))}"


def _refuse(key: str, value: Any, allowed: str) -> None:
    raise errors.InputError(f"{key}: {value!r} is not allowed; give {allowed}")


def format_table(spec: SearchSpec) -> str:
    """Returns the search and the plan of its candidates as text."""
    config, networks = spec.config, spec.space
    how = config.step_time
    where = "measured here" if how.source == "measure" else f"compiled for {how.slice}"
    rows = {
        "space": f"{', '.join(networks.backbones)}: {networks.size():,} networks, of "
        f"{networks.min_params:,} to {networks.max_params:,} parameters",
        "reward": f"A * (S / S0)^{config.reward.step_exponent} * "
        f"(P / P0)^{config.reward.params_exponent}; S0, P0 of "
        f"{config.reward.reference}",
        "step time": f"{where}, {how.batch_size:,} images of {how.image_size} px",
        "candidates": f"{config.trials:,}, by {config.controller}; pruning: "
        f"{config.prune}; at most {config.limit_minutes:g} minutes each",
    }
    lines = [f"{key:<12}{text}" for key, text in rows.items()]
    return "\n".join([*lines, "each candidate:", plan.format_table(spec.plan)])

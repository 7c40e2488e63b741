"""What the config of a search asks for, checked before anything is written."""

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
from ev2.nas import controllers, proxy, reward
from ev2.nas import space as spaces
from ev2.tpu import compile as tpu
from ev2.tpu import slices
from ev2.train import plan
from ev2.train import validate as check

PRUNERS = ("none", "median")
_FEW = 20  # networks a trial: such a space is looked through whole
# Key: lowest and highest allowed whole number.
_WHOLE = {
    "trials": (1, 100_000),
    "seed": (0, 2**32 - 1),
    "retries": (0, 100),
    "keep_best": (1, 1000),
    "step_time.image_size": (8, 10_000),
    "step_time.batch_size": (1, 2**20),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A search as decided.

    Attributes:
        config: see configs/search.py.
        space: within its bounds.
        reference: text of the network that rewards are relative to.
        num_classes: of the proxy's data.
        table: the proxy's plan, see `plan.make_plan`.
    """

    config: ConfigDict
    space: spaces.Space
    reference: str
    num_classes: int
    table: dict[str, Any]

    @property
    def task(self) -> dict[str, Any]:
        """The search, JSON-ready, for candidates' processes and for `restore`."""
        search = json.loads(self.config.to_json_best_effort())
        return {"search": search, "num_classes": self.num_classes, "table": self.table}

    def reward(self, cost: dict[str, Any]) -> reward.Reward:
        """The reward, by what the reference costs."""
        return reward.Reward(
            step_seconds=cost["step_seconds"],
            params=cost["params"],
            step_exponent=self.config.reward.step_exponent,
            params_exponent=self.config.reward.params_exponent,
        )


def decide(config: ConfigDict, workdir: pathlib.Path) -> Asked:
    """Returns what a config asks for; compiles and writes nothing.

    Raises:
        InputError: it is no search, or one that cannot be.
    """
    if "controller" not in config or "proxy" not in config:
        runs = "ev2 chain runs it" if "links" in config else "ev2 train runs it"
        raise errors.InputError(
            f"config: this is no search ({runs}); give one such as "
            "configs/search.py:tiny"
        )
    try:
        _check_values(config)
        check.check_recipe(config.proxy)
        from ev2.data import sources  # load TensorFlow, which workers do without
        from ev2.train import setup

        num_classes = sources.describe(config.proxy).num_classes
        space = _make_space(config, num_classes)
    except errors.InputError:
        raise
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        # A key that is missing, or a value of another type than in configs/search.py.
        raise errors.InputError(
            f"config: {' '.join(map(str, error.args))}; see configs/search.py"
        ) from error
    sample = space.sample(random.Random(config.seed))
    few = space.size() <= _FEW * config.trials
    networks = space.count_valid(config.trials) if few else space.size()
    if config.trials > networks:
        raise errors.InputError(
            f"trials: {config.trials:,} is not allowed; the space has {networks:,} "
            "networks within its bounds, give at most as many"
        )
    text = space.encode(sample)
    with _of("proxy"):
        recipe = proxy.apply(config.proxy, text)
        table = setup.set_up(recipe, str(workdir / "trials/new")).plan
    with _of("full"):
        plan.make_plan(proxy.apply(config.full, text))
    return Asked(
        config=config,
        space=space,
        reference=_reference(config),
        num_classes=num_classes,
        table=table,
    )


def restore(task: dict[str, Any]) -> Asked:
    """Returns what `Asked.task` was made from."""
    config = ConfigDict(task["search"], convert_dict=True)
    return Asked(
        config=config,
        space=_make_space(config, task["num_classes"]),
        reference=_reference(config),
        num_classes=task["num_classes"],
        table=task["table"],
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
    known = arch.list_models()
    errors.check_choice("reward.reference", config.reward.reference, known)
    low, high = config.space.params
    if not 0 <= low <= high < math.inf or not high:
        _refuse("space.params", (low, high), "two shares of the reference's, ascending")
    if config.prune != "none" and not config.proxy.eval.every_epochs:
        _refuse("prune", config.prune, "'none' where proxy.eval.every_epochs is 0")
    how = config.step_time
    errors.check_choice("step_time.source", how.source, proxy.SOURCES)
    if how.source == "compile":
        devices = slices.find(how.slice).devices
        check.check_batches(config.proxy, {how.batch_size}, devices)
        tpu.check_installed()


@contextlib.contextmanager
def _of(section: str) -> Iterator[None]:
    """Says of which recipe a bad key is."""
    try:
        yield
    except errors.InputError as error:
        raise errors.InputError(f"{section}: {error}") from error


def _make_space(config: ConfigDict, num_classes: int) -> spaces.Space:
    reference = arch.get(config.reward.reference)
    low, high = config.space.params
    params = arch.count_params(reference, num_classes)
    names = ("backbones", "operators", "layers", "kernels", "expands")
    return spaces.Space(
        **{key: tuple(config.space[key]) for key in names},
        min_params=round(low * params),
        max_params=max(1, round(high * params)),
        num_classes=num_classes,
    )


def _reference(config: ConfigDict) -> str:
    found = arch.get(config.reward.reference)
    return f"{found.name}:{','.join(arch.encode(found.stages))}"


def _refuse(key: str, value: Any, allowed: str) -> None:
    raise errors.InputError(f"{key}: {value!r} is not allowed; give {allowed}")


def format_table(asked: Asked) -> str:
    """Returns for people what is going to be searched, and how."""
    config, space = asked.config, asked.space
    how = config.step_time
    where = "measured here" if how.source == "measure" else f"compiled for {how.slice}"
    rows = {
        "space": f"{', '.join(space.backbones)}: {space.size():,} networks, of "
        f"{space.min_params:,} to {space.max_params:,} parameters",
        "reward": f"A * (S / S0)^{config.reward.step_exponent} * "
        f"(P / P0)^{config.reward.params_exponent}; S0, P0 of "
        f"{config.reward.reference}",
        "step time": f"{where}, {how.batch_size:,} images of {how.image_size} px",
        "candidates": f"{config.trials:,}, by {config.controller}; pruning: "
        f"{config.prune}; at most {config.limit_minutes:g} minutes each",
    }
    lines = [f"{key:<12}{text}" for key, text in rows.items()]
    return "\n".join([*lines, "each candidate:", plan.format_table(asked.table)])

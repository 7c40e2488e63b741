"""What a sweep's command line asks for, checked before anything is created."""

import dataclasses
import functools
import json
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import optuna
from absl import flags
from ml_collections import config_flags

from ev2 import errors, files
from ev2.cli import flags as cli_flags
from ev2.sweeps import runner as trial
from ev2.sweeps import storage
from ev2.sweeps import study as tries
from ev2.train import validate as check
from launch import nodes, space, sweep_tpu


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for, checked; nothing has been created.

    Attributes:
      words: --config and what is set inside it, for every trial.
      config: with that set.
      tpus: None for trials on this machine.
    """

    values: Any
    name: str
    out: pathlib.Path
    url: str
    sweep: space.Sweep
    words: Sequence[str]
    config: Any
    tpus: sweep_tpu.Tpus | None

    @property
    def plan(self) -> tries.Plan:
        sweep = self.sweep
        keys = {
            **{f"sweep.{k}": v for k, v in dataclasses.asdict(sweep).items()},
            **{f"config.{k}": v for k, v in space.leaves(self.config.to_dict())},
            **({"command": self.values.command} if self.values.command else {}),
        }
        return tries.Plan(
            definition=keys,
            points=space.points(sweep),
            score=sweep.score,
            direction=sweep.goal,
            sampler=functools.partial(_make_sampler, sweep),
            pruner=_make_pruner(sweep),
            retries=self.values.retries,
            grace_s=self.values.grace_s,
        )


def _make_sampler(sweep: space.Sweep, point: int) -> optuna.samplers.BaseSampler:
    """A seed for each point: workers must not all suggest the same."""
    seed = (sweep.seed * 1_000_003 + point) % 2**32
    if sweep.method == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)  # is asked for nothing


def _make_pruner(sweep: space.Sweep) -> optuna.pruners.BasePruner:
    after = sweep.prune_after
    if sweep.prune == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=after)
    if sweep.prune == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=after)
    return optuna.pruners.NopPruner()


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Raises InputError if `argv` are no flags, or the config cannot be read."""
    rest = cli_flags.read(values, argv)
    if rest:
        raise errors.InputError(f"flags: {rest[0]!r} is not a flag; write --name=value")


def check_flags(values: flags.FlagValues) -> Asked:
    """Returns what the flags ask for.

    Raises:
      InputError: they do not belong together, or the sweep not to the config.
    """
    for name in ("config", "sweep"):
        if not values[name].value:
            raise errors.InputError(f"{name}: missing; give --{name}=...")
    if values.workers < 1:
        raise errors.InputError(
            f"workers: {values.workers} is not allowed; give 1 or more"
        )
    for name, seconds in (("poll_s", values.poll_s), ("beat_s", values.beat_s)):
        if not 0 < seconds < math.inf:
            raise errors.InputError(
                f"{name}: {seconds:g} is not allowed; give seconds, above 0"
            )
    if not values.grace_s >= 2 * values.beat_s:
        raise errors.InputError(
            f"grace_s: {values.grace_s:g} is not allowed; give twice beat_s "
            f"({values.beat_s:g}) or more"
        )
    _check_command(values.command or "")
    check.check_recipe(values.config)
    sweep = space.fit(space.load(values.sweep), values.config)
    set_here = config_flags.get_override_values(values["config"])
    if both := set_here.keys() & sweep.keys.keys():
        raise errors.InputError(
            f"config.{min(both)}: the sweep has this key; leave it out here"
        )
    name = values.name or pathlib.Path(values.sweep).stem
    if not re.fullmatch(r"[\w.-]+", name):
        raise errors.InputError(
            f"name: {name!r} is not allowed; give letters, digits and .-_"
        )
    out = pathlib.Path(values.out or f"runs/sweeps/{name}")
    return Asked(
        values=values,
        name=name,
        out=out,
        url=values.storage or str(out / "journal.log"),
        sweep=sweep,
        words=[
            f"--config={config_flags.get_config_filename(values['config'])}",
            *space.as_flags(set_here),
        ],
        config=values.config,
        tpus=_find_tpus(values, name),
    )


def _check_command(command: str) -> None:
    """Raises InputError if `command` cannot be split, or its program is not there."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise errors.InputError(f"command: {command!r}: {error}") from error
    if words and shutil.which(words[0]) is None:
        raise errors.InputError(f"command: there is no program {words[0]!r}")


def _find_tpus(values, name: str) -> sweep_tpu.Tpus | None:
    if not values.tpus:
        return None
    missing = [
        f"--{n}=..." for n in ("zone", "project", "bucket") if not values[n].value
    ]
    if missing:
        raise errors.InputError(f"flags: --tpus also needs {' '.join(missing)}")
    if values.workers > 1:
        raise errors.InputError(
            f"workers: {values.workers} is not allowed with --tpus; a node has one "
            "trial at a time"
        )
    if len(set(values.tpus)) < len(values.tpus):
        raise errors.InputError(
            f"tpus: {','.join(values.tpus)} is not allowed; give every node once"
        )
    return sweep_tpu.Tpus(
        places=[
            nodes.Place(name=node, zone=values.zone, project=values.project)
            for node in values.tpus
        ],
        bucket=values.bucket.rstrip("/"),
        folder=f"sweeps/{name}",
        source=values.source,
    )


def open_trials(asked: Asked) -> tries.Trials:
    """Checks what is left, then opens the storage and the sweep in it."""
    plan, path = asked.plan, asked.out / "sweep.json"
    files.check_writable("out", asked.out)
    if path.exists():
        there = _read_definition(path)
        storage.refuse_differing(f"out: {str(asked.out)!r}", there, plan.definition)
    storage.check(asked.url)
    if not asked.values.only_results:
        if asked.tpus and asked.values.check_tpus:
            sweep_tpu.check(asked.tpus)
        if asked.values.check_config and not (path.exists() or asked.values.command):
            _check_config(asked, plan)
    if asked.values.only_results and "://" not in asked.url:
        if not pathlib.Path(asked.url).exists():
            raise _no_sweep(asked)
    kept = storage.connect(asked.url)
    known = storage.refuse_other(kept, asked.name, plan.definition)
    if asked.values.only_results and not known:
        raise _no_sweep(asked)
    return tries.Trials(kept, asked.name, plan)


def _no_sweep(asked: Asked) -> errors.InputError:
    where = storage.hidden(asked.url)
    return errors.InputError(f"name: there is no sweep {asked.name!r} in {where!r}")


def _read_definition(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return {**found}
    except (OSError, ValueError, TypeError) as error:
        raise errors.InputError(
            f"out: {str(path)!r} cannot be read or is damaged; choose another folder"
        ) from error


def _check_config(asked: Asked, plan: tries.Plan) -> None:
    """Raises InputError if `ev2 plan` refuses the config of the first trial."""
    first = space.decode(asked.sweep, plan.points[0])
    words = [*asked.words, *space.as_flags(first)]
    done = subprocess.run(
        [sys.executable, "-m", "ev2", "plan", *words],
        env=trial.environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise errors.InputError(lines[-1].removeprefix("ev2: "))

"""Checks the flags of a sweep before anything is created."""

import dataclasses
import functools
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
from ev2.sweeps import storage, study, workers
from ev2.train import validate, workdir
from launch import nodes, space, sweep_tpu


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """A sweep as its command line defines it.

    Attributes:
        flags: values of all flags.
        name: name of the study in the storage.
        out: folder on this machine.
        storage: path or URL of the study's database.
        sweep: the sweep file.
        arguments: --config and its overrides, for every trial.
        spec: the study.
        tpus: nodes for the trials; None for trials on this machine.
    """

    flags: Any
    name: str
    out: pathlib.Path
    storage: str
    sweep: space.Sweep
    arguments: Sequence[str]
    spec: study.StudySpec
    tpus: sweep_tpu.Tpus | None


def check(values: flags.FlagValues) -> SweepOptions:
    """Checks parsed flags and returns the options of the sweep.

    Raises:
        InputError: flags contradict each other, or the sweep contradicts its config.
    """
    for name in ("config", "sweep"):
        if not values[name].value:
            raise errors.InputError(f"{name}: missing; give --{name}=...")
    if values.workers < 1:
        _refuse("workers", values.workers, "1 or more")
    for name, seconds in (("poll_s", values.poll_s), ("beat_s", values.beat_s)):
        if not 0 < seconds < math.inf:
            _refuse(name, f"{seconds:g}", "seconds, above 0")
    if not values.grace_s >= 2 * values.beat_s:
        allowed = f"twice beat_s ({values.beat_s:g}) or more"
        _refuse("grace_s", f"{values.grace_s:g}", allowed)
    _check_command(values.command or "")
    validate.check_recipe(values.config)
    sweep = space.fit(space.load(values.sweep), values.config)
    overrides = config_flags.get_override_values(values["config"])
    if both := overrides.keys() & sweep.keys.keys():
        raise errors.InputError(
            f"config.{min(both)}: the sweep has this key; leave it out here"
        )
    name = values.name or pathlib.Path(values.sweep).stem
    if not re.fullmatch(r"[\w.-]+", name):
        _refuse("name", repr(name), "letters, digits and .-_")
    out = pathlib.Path(values.out or f"runs/sweeps/{name}")
    recipe = config_flags.get_config_filename(values["config"])
    return SweepOptions(
        flags=values,
        name=name,
        out=out,
        storage=values.storage or str(out / "study.db"),
        sweep=sweep,
        arguments=[f"--config={recipe}", *space.as_flags(overrides)],
        spec=_make_spec(sweep, values),
        tpus=_find_tpus(values, name),
    )


def _refuse(key: str, value: object, allowed: str) -> None:
    raise errors.InputError(f"{key}: {value} is not allowed; give {allowed}")


def _check_command(command: str) -> None:
    """Raises InputError if `command` cannot be split, or its program is missing."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise errors.InputError(f"command: {command!r}: {error}") from error
    if words and shutil.which(words[0]) is None:
        raise errors.InputError(f"command: there is no program {words[0]!r}")


def _make_spec(sweep: space.Sweep, values: Any) -> study.StudySpec:
    pruners = {
        "none": optuna.pruners.NopPruner(),
        "median": optuna.pruners.MedianPruner(n_warmup_steps=sweep.prune_after),
        "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=sweep.prune_after),
    }
    config = workdir.flatten(values.config.to_dict(), ".")
    return study.StudySpec(
        definition={
            **{f"sweep.{k}": v for k, v in dataclasses.asdict(sweep).items()},
            **{f"config.{k}": v for k, v in config.items()},
            **({"command": values.command} if values.command else {}),
        },
        params=space.points(sweep),
        score=sweep.score,
        direction=sweep.goal,
        make_sampler=functools.partial(space.make_sampler, sweep),
        pruner=pruners[sweep.prune],
        retries=values.retries,
        heartbeat_s=math.ceil(values.beat_s),
        grace_s=math.ceil(values.grace_s),
    )


def _find_tpus(values: Any, name: str) -> sweep_tpu.Tpus | None:
    if not values.tpus:
        return None
    needed = ("zone", "project", "bucket")
    if missing := [f"--{flag}=..." for flag in needed if not values[flag].value]:
        raise errors.InputError(f"flags: --tpus also needs {' '.join(missing)}")
    if values.workers > 1:
        raise errors.InputError(
            f"workers: {values.workers} is not allowed with --tpus; a node has one "
            "trial at a time"
        )
    if len(set(values.tpus)) < len(values.tpus):
        _refuse("tpus", ",".join(values.tpus), "every node once")
    place = {"zone": values.zone, "project": values.project}
    return sweep_tpu.Tpus(
        places=[nodes.Place(name=node, **place) for node in values.tpus],
        bucket=values.bucket.rstrip("/"),
        folder=f"sweeps/{name}",
        source=values.source,
    )


def open_study(options: SweepOptions) -> study.SharedStudy:
    """Runs the slow checks, then opens the study in its storage."""
    values, spec = options.flags, options.spec
    path = options.out / "sweep.json"
    files.check_writable("out", options.out)
    before = workdir.read_json(path)
    if before is not None:
        study.refuse_differing(f"out: {str(options.out)!r}", before, spec.definition)
    url = storage.check(options.storage)
    if values.only_results:
        is_file = url.get_backend_name() == "sqlite"
        if is_file and not pathlib.Path(url.database or "").exists():
            raise errors.InputError(
                f"name: there is no study {options.name!r} in {options.storage!r}"
            )
    else:
        if options.tpus and values.check_tpus:
            sweep_tpu.check(options.tpus)
        if values.check_config and before is None and not values.command:
            _check_config(options)
    create = not values.only_results
    return study.SharedStudy(options.storage, options.name, spec, create=create)


def _check_config(options: SweepOptions) -> None:
    """Raises InputError if `ev2 plan` refuses the config of the first trial."""
    first = space.decode(options.sweep, options.spec.params[0])
    words = [*options.arguments, *space.as_flags(first)]
    plan = subprocess.run(
        [sys.executable, "-m", "ev2", "plan", *words],
        env=workers.environment(),
        capture_output=True,
        text=True,
    )
    if plan.returncode:
        lines = plan.stderr.strip().splitlines() or ["no reason given"]
        raise errors.InputError(lines[-1].removeprefix("ev2: "))

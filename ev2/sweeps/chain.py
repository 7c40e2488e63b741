"""Several runs as one: each link a recipe that may start from another link's weights.

A chain is a config of `links`, their names in order; `seeds`, how often each is run;
and under each name its recipe. `init.checkpoint` of a recipe may be "link:NAME".

    WORKDIR/LINK/SEED/      a run, as `ev2 train` leaves it
    WORKDIR/chain.json, chain.csv    what came of them
"""

import copy
import dataclasses
import os
import pathlib
import re
from typing import Any

import jax
from ml_collections import ConfigDict

from ev2 import errors
from ev2.report import report
from ev2.sweeps import chain_summary
from ev2.train import initialize as initial
from ev2.train import loop as train
from ev2.train import setup
from ev2.train import workdir as run_folder

LINK = "link:"  # begins an init.checkpoint that is another link
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a chain, checked."""

    link: str
    folder: str
    config: ConfigDict  # with its seed and checkpoint; nothing left open
    plan: dict[str, Any] | None  # see `plan.make_plan`; None if finished
    start: "Run | None"  # of the chain, that it starts from
    result: dict[str, Any] | None  # its eval.json, if finished


def run_chain(chain: ConfigDict, workdir: str, *, dry: bool = False) -> dict[str, Any]:
    """Runs what is not finished of a chain, in order, and sums up.

    Killed at any moment, the same call goes on; a finished run is left as it is.

    Args:
      chain: see above.
      workdir: folder of all its runs.
      dry: checks and prints what there is to do, and does nothing.

    Returns:
      The content of `chain.json`; see `chain_summary.summarize`.

    Raises:
      InputError: a link cannot be run, or its folder holds a run of another config;
        before any is run.
      FloatingPointError, PreemptedError: see `train.train_and_evaluate`.
    """
    runs = plan_chain(chain, workdir)
    speaks = jax.process_index() == 0
    if speaks:
        print(chain_summary.format_plan(runs), flush=True)
    if dry:
        return chain_summary.summarize([run for run in runs if run.result])
    for number, run in enumerate(runs, 1):
        if run.result is None:
            if speaks:
                print(f"\n{number} of {len(runs)}: {run.folder}", flush=True)
            result = train.train_and_evaluate(run.config, run.folder)
            run = runs[number - 1] = dataclasses.replace(run, result=result)
        if speaks:
            if not os.path.exists(os.path.join(run.folder, "report.html")):
                report.write_report(run.folder)
            finished = [run for run in runs if run.result]
            chain_summary.write(chain_summary.summarize(finished), workdir)
    return chain_summary.summarize(runs)


def plan_chain(chain: ConfigDict, workdir: str) -> list[Run]:
    """Returns all runs of a chain in order, each checked; writes nothing.

    Raises:
      InputError: see `run_chain`; the line begins with the link's name.
    """
    _check_chain(chain)
    runs: dict[str, list[Run]] = {}
    for name in chain.links:
        try:
            runs[name] = [
                _plan_run(chain, name, number, runs, workdir)
                for number in range(chain.seeds[name])
            ]
        except errors.InputError as error:
            raise errors.InputError(f"{name}: {error}") from error
    return [run for found in runs.values() for run in found]


def _check_chain(chain: ConfigDict) -> None:
    if "controller" in chain:
        raise errors.InputError("config: this is a search; ev2 search runs it")
    if "links" not in chain or "seeds" not in chain:
        raise errors.InputError(
            "config: this is a recipe and no chain; give a chain such as "
            "configs/chain_demo.py, or train it with ev2 train"
        )
    names = chain.links
    if not names or isinstance(names, str) or len(set(names)) < len(names):
        raise errors.InputError(
            f"links: {names!r} is not allowed; give the names of links, each once"
        )
    for name in names:
        if name not in chain or not _NAME.match(name) or name in ("links", "seeds"):
            known = [key for key in chain if key not in ("links", "seeds")]
            raise errors.InputError(
                f"links: {name!r} is no link; choose of {', '.join(known)}"
            )
        count = chain.seeds.get(name)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise errors.InputError(
                f"seeds.{name}: {count!r} is not allowed; give a whole number of runs"
            )


def _plan_run(
    chain: ConfigDict, name: str, number: int, runs: dict[str, list[Run]], workdir: str
) -> Run:
    config = copy.deepcopy(chain[name])
    config.seed += number
    folder = os.path.join(os.path.abspath(workdir), name, str(config.seed))
    start = _find_start(config, chain.seeds[name], number, runs)
    begun = run_folder.read_config(folder)
    if start is not None:
        _check_network(config, start)
        config.init.checkpoint = _checkpoint_of(start, begun)
    result = run_folder.read_json(pathlib.Path(folder) / "eval.json")
    if start is not None and start.result is None and begun is not None:
        raise errors.InputError(
            f"workdir: {folder!r} holds a run that started from {start.folder!r}, "
            "which is not finished any more; remove it, or restore the other"
        )
    if result is not None and begun is not None:  # its data may be gone by now
        config, table = initial.fill(config, begun["data"]), None
        run_folder.check_resumable(folder, config, {})
    elif start is not None and start.result is None:
        experiment = setup.set_up_link(config, folder, start.config.data.to_dict())
        config, table = experiment.config, experiment.plan
    else:
        experiment = setup.set_up(config, folder)
        config, table = experiment.config, experiment.plan
    return Run(
        link=name, folder=folder, config=config, plan=table, start=start, result=result
    )


def _find_start(
    config: ConfigDict, count: int, number: int, runs: dict[str, list[Run]]
) -> Run | None:
    """The run that run `number` of `count` starts from: that of the same number."""
    path = config.init.checkpoint
    if not path.startswith(LINK):
        return None
    name = path.removeprefix(LINK)
    if name not in runs:
        before = ", ".join(runs) or "none"
        raise errors.InputError(
            f"init.checkpoint: {path!r} is no link before this one ({before}); change "
            "it or links"
        )
    if len(runs[name]) not in (1, count):
        raise errors.InputError(
            f"seeds: {count} runs cannot start from the {len(runs[name])} of {name}; "
            "give as many, or one there"
        )
    return runs[name][number if len(runs[name]) > 1 else 0]


def _checkpoint_of(start: Run, begun: dict[str, Any] | None) -> str:
    """Path of the start; as written by a begun run, if the chain's folder moved."""
    inside = os.path.join("", *pathlib.PurePath(start.folder).parts[-2:])
    before = begun["init"]["checkpoint"] if begun else ""
    return before if before.endswith(os.sep + inside) else start.folder


def _check_network(config: ConfigDict, start: Run) -> None:
    for key in ("name", "blocks", "padding"):
        ours, theirs = config.model[key], start.config.model[key]
        if ours != theirs:
            raise errors.InputError(
                f"model.{key}: {ours!r}, but {start.link}, from which this starts, has "
                f"{theirs!r}; give both the same"
            )

"""Runs several recipes in order, each from the weights of an earlier one.

A chain is a config with `links`, the names of its links in order; `seeds`, the number
of runs of each link; and the recipe of each link under its name. `init.checkpoint` of a
recipe may be "link:NAME".

    WORKDIR/LINK/SEED/               a run with the files of `ev2 train`
    WORKDIR/chain.json, chain.csv    results of all runs
"""

import copy
import csv
import dataclasses
import io
import json
import os
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import tabulate
from ml_collections import ConfigDict

from ev2 import errors, files
from ev2.checkpoint import pretrained
from ev2.report import report
from ev2.train import initialize, loop, setup
from ev2.train import workdir as workdirs

JSON_NAME, CSV_NAME = "chain.json", "chain.csv"
LINK = "link:"  # prefix of an init.checkpoint that is another link
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*$")
_RESERVED = ("links", "seeds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainRun:
    """A checked run of a chain.

    Attributes:
        link: name of the link.
        folder: work directory.
        config: complete config, with seed and checkpoint.
        plan: see `plan.make_plan`; None if the run is finished.
        start: the run of the chain that gives the first weights.
        result: eval.json of a finished run.
    """

    link: str
    folder: str
    config: ConfigDict
    plan: dict[str, Any] | None
    start: "ChainRun | None"
    result: dict[str, Any] | None

    @property
    def data(self) -> str:
        """Name of the data, else the last part of its path, else its source."""
        data = self.config.data
        return data.name or pathlib.PurePath(data.path).name or data.source


def run_chain(chain: ConfigDict, workdir: str, *, dry: bool = False) -> dict[str, Any]:
    """Runs the unfinished runs of a chain in order, and summarizes all runs.

    After a kill at any moment the same call resumes the chain. Finished runs stay as
    they are.

    Args:
        chain: see the module.
        workdir: folder of all runs.
        dry: checks and prints the runs, and trains nothing.

    Returns:
        The content of `chain.json`; see `summarize`.

    Raises:
        InputError: a recipe is bad, or a folder holds a run of another config; before
            any training.
        FloatingPointError, PreemptedError: see `loop.train_and_evaluate`.
    """
    runs = plan_chain(chain, workdir)
    is_first = jax.process_index() == 0
    if is_first:
        print(format_plan(runs), flush=True)
    if dry:
        return summarize([run for run in runs if run.result])
    for number, run in enumerate(runs):
        if run.result is None:
            if is_first:
                print(f"\n{number + 1} of {len(runs)}: {run.folder}", flush=True)
            result = loop.train_and_evaluate(run.config, run.folder)
            run = runs[number] = dataclasses.replace(run, result=result)
        if is_first:
            if not os.path.exists(os.path.join(run.folder, "report.html")):
                report.write_report(run.folder)
            _write(summarize([run for run in runs if run.result]), workdir)
    return summarize(runs)


def plan_chain(chain: ConfigDict, workdir: str) -> list[ChainRun]:
    """Returns all runs of a chain in order, each checked; writes nothing.

    Raises:
        InputError: see `run_chain`; the message begins with the link's name.
    """
    _check_chain(chain)
    runs: dict[str, list[ChainRun]] = {}
    for name in chain.links:
        try:
            count = chain.seeds[name]
            runs[name] = [
                _plan_run(chain, name, i, runs, workdir) for i in range(count)
            ]
        except errors.InputError as error:
            raise errors.InputError(f"{name}: {error}") from error
    return sum(runs.values(), [])


def _check_chain(chain: ConfigDict) -> None:
    if "controller" in chain:
        raise errors.InputError("config: this is a search; ev2 search runs it")
    if "links" not in chain or "seeds" not in chain:
        raise errors.InputError(
            "config: this is a recipe, not a chain; give a chain such as "
            "configs/chain_demo.py, or train it with ev2 train"
        )
    names = chain.links
    if not names or isinstance(names, str) or len(set(names)) < len(names):
        raise errors.InputError(
            f"links: {names!r} is not allowed; give the names of links, each once"
        )
    for name in names:
        if name not in chain or not _NAME.match(name) or name in _RESERVED:
            known = ", ".join(key for key in chain if key not in _RESERVED)
            raise errors.InputError(
                f"links: {name!r} is not a link; choose among {known}"
            )
        count = chain.seeds.get(name)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise errors.InputError(
                f"seeds.{name}: {count!r} is not allowed; give a whole number of runs"
            )


def _plan_run(
    chain: ConfigDict,
    name: str,
    number: int,
    runs: dict[str, list[ChainRun]],
    workdir: str,
) -> ChainRun:
    config = copy.deepcopy(chain[name])
    config.seed += number
    folder = os.path.join(os.path.abspath(workdir), name, str(config.seed))
    start = _find_start(config, chain.seeds[name], number, runs)
    earlier = workdirs.read_config(folder)
    result = workdirs.read_json(pathlib.Path(folder) / "eval.json")
    if start is not None:
        _check_network(config, start)
        config.init.checkpoint = _checkpoint_of(start, earlier)
        if start.result is None and earlier is not None:
            raise errors.InputError(
                f"workdir: {folder!r} holds a run that started from {start.folder!r}, "
                "which is not finished any more; remove it, or restore the other"
            )
    plan = None
    if result is not None and earlier is not None:  # the data may be gone by now
        config = initialize.fill(config, earlier["data"])
        workdirs.check_resumable(folder, config, {})
    else:
        if start is not None and start.result is None:
            preprocessing = start.config.data.to_dict()
            experiment = setup.set_up_link(config, folder, preprocessing)
        else:
            experiment = setup.set_up(config, folder)
        config, plan = experiment.config, experiment.plan
    made = {"config": config, "plan": plan, "start": start, "result": result}
    return ChainRun(link=name, folder=folder, **made)


def _find_start(
    config: ConfigDict, count: int, number: int, runs: dict[str, list[ChainRun]]
) -> ChainRun | None:
    """Returns the run that run `number` of `count` starts from, or None."""
    path = config.init.checkpoint
    if not path.startswith(LINK):
        return None
    name = path.removeprefix(LINK)
    if name not in runs:
        before = ", ".join(runs) or "none"
        raise errors.InputError(
            f"init.checkpoint: {path!r} is not a link before this one ({before}); "
            "change it or links"
        )
    if len(runs[name]) not in (1, count):
        raise errors.InputError(
            f"seeds: {count} runs cannot start from the {len(runs[name])} of {name}; "
            "give as many, or one there"
        )
    return runs[name][number if len(runs[name]) > 1 else 0]


def _checkpoint_of(start: ChainRun, earlier: dict[str, Any] | None) -> str:
    """Returns the path of the start, as an earlier config has it if the chain moved."""
    inside = os.path.join("", *pathlib.PurePath(start.folder).parts[-2:])
    before = earlier["init"]["checkpoint"] if earlier else ""
    return before if before.endswith(os.sep + inside) else start.folder


def _check_network(config: ConfigDict, start: ChainRun) -> None:
    for key in ("name", "blocks", "padding"):
        value, expected = config.model[key], start.config.model[key]
        if value != expected:
            raise errors.InputError(
                f"model.{key}: {value!r}, but {start.link}, from which this starts, "
                f"has {expected!r}; give both the same"
            )


def format_plan(runs: Sequence[ChainRun]) -> str:
    """Returns a table of the runs."""
    head = ("link", "data", "from", "seed", "px", "batch", "steps", "")
    rows = []
    for run in runs:
        size, batch = run.config.progressive.image_size[1], run.config.batch_size
        if run.plan:
            last = run.plan["stages"][-1]
            size, batch = last["image_size"], last["batch_size"]
        steps = run.plan["steps"] if run.plan else (run.result or {})["step"]
        exists = workdirs.read_config(run.folder) is not None
        state = "finished" if run.result else "to resume" if exists else "to run"
        start = run.config.init.checkpoint or "random weights"
        if run.start is not None:
            start = f"{run.start.link}/{run.start.config.seed}"
        numbers = (run.config.seed, size, f"{batch:,}", f"{steps:,}")
        rows.append((run.link, run.data, start, *numbers, state))
    return _align(rows, head, left=(0, 1, 2, 7))


def _align(rows: Sequence[Sequence], head: Sequence[str], left: Sequence[int]) -> str:
    sides = ["left" if i in left else "right" for i in range(len(head))]
    return tabulate.tabulate(rows, head, "plain", colalign=sides, disable_numparse=True)


def summarize(runs: Sequence[ChainRun]) -> dict[str, Any]:
    """Returns the results of finished runs as JSON-ready values.

    Returns:
        "links": for each link "name", "top1" and "train_seconds" (see `_average`),
        "wall_seconds", "device_hours" and "runs" (files, checkpoint, accuracy and time
        of each run); the sums of all links; "versions". Times include restarts, except
        steps lost by a kill; device-hours are wall time times the devices of the last
        start.
    """
    links: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        links.setdefault(run.link, []).append(_describe(run))
    summaries = [_summarize_link(name, rows) for name, rows in links.items()]
    sums = {
        key: sum(link[key] for link in summaries)
        for key in ("wall_seconds", "device_hours")
    }
    return {"links": summaries, **sums, "versions": workdirs.versions()}


def _summarize_link(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    averaged = ("top1", "top5", "train_seconds")
    return {
        **{"name": name, "model": runs[0]["model"], "data": runs[0]["data"]},
        **{key: _average([run[key] for run in runs]) for key in averaged},
        "wall_seconds": round(sum(run["wall_seconds"] for run in runs), 1),
        "device_hours": round(sum(run["device_hours"] for run in runs), 4),
        "runs": runs,
    }


def _describe(run: ChainRun) -> dict[str, Any]:
    result = run.result or {}
    seconds, devices = result["wall_seconds"], result.get("devices", 1)
    stages = workdirs.read_run(run.folder).stages
    train_seconds = sum(stage.get("train_seconds", 0.0) for stage in stages)
    return {
        "seed": run.config.seed,
        "model": run.config.model.name,
        "data": run.data,
        "config": os.path.join(run.folder, "config.json"),
        "start": run.config.init.checkpoint,
        "checkpoint": os.fspath(pretrained.find(run.folder) or ""),
        "step": result["step"],
        "image_size": result["image_size"],
        **{k: v for k, v in result["ema"].items() if k != "skipped"},
        "raw_top1": result["raw"]["top1"],
        "train_seconds": round(train_seconds, 2),
        "wall_seconds": seconds,
        "devices": devices,
        "device_hours": round(seconds * devices / 3600, 4),
    }


def _average(values: list[float]) -> dict[str, Any]:
    """Returns mean and "spread", the standard deviation (n - 1); None for one value."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "runs": len(values)}


def format_summary(summary: dict[str, Any]) -> str:
    """Returns a table of the links; accuracies in %, as in Table 8."""
    head = ("link", "network", "data", "checkpoint", "runs", "px", "steps", "top-1, %")
    head += ("training, s", "wall time", "device-hours")
    rows = []
    for link in summary["links"]:
        last, seeds = link["runs"][-1], [str(run["seed"]) for run in link["runs"]]
        path = f"{link['name']}/{{{','.join(seeds)}}}"
        if len(seeds) == 1:
            path = f"{link['name']}/{seeds[0]}/checkpoints/{last['step']}"
        rows.append(
            (link["name"], link["model"], link["data"], path, len(seeds))
            + (last["image_size"], f"{last['step']:,}")
            + (_plus_minus(link["top1"], 100, 2),)
            + (_plus_minus(link["train_seconds"], 1, 1),)
            + (_clock(link["wall_seconds"]), f"{link['device_hours']:.3f}")
        )
    sums = (_clock(summary["wall_seconds"]), f"{summary['device_hours']:.3f}")
    rows.append(("total", *[""] * (len(head) - 3), *sums))
    return _align(rows, head, left=(0, 1, 2, 3))


def _plus_minus(value: dict[str, Any], factor: int, decimals: int) -> str:
    mean, spread = value["mean"], value["spread"]
    text = f"{factor * mean:.{decimals}f}"
    return text if spread is None else f"{text} +- {factor * spread:.{decimals}f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _write(summary: dict[str, Any], workdir: str) -> None:
    """Writes chain.json and chain.csv; InputError if the folder cannot be written."""
    folder = pathlib.Path(workdir)
    links = summary["links"]
    rows = [{"link": link["name"], **run} for link in links for run in link["runs"]]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    document = json.dumps(summary, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(folder / JSON_NAME, document.encode())
        files.write_atomically(folder / CSV_NAME, table.getvalue().encode())
    except OSError as error:
        raise errors.InputError(
            f"workdir: {workdir!r} cannot be written ({error.strerror}); make room or "
            "choose another folder"
        ) from error

"""A chain as tables: what is to be run, and what came of it."""

import csv
import io
import json
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from ev2 import errors, files
from ev2.checkpoint import pretrained
from ev2.train import workdir as run_folder

JSON_NAME, CSV_NAME = "chain.json", "chain.csv"


def format_plan(runs: Sequence[Any]) -> str:
    """Returns a line for each of `chain.Run`, for people."""
    rows = [("link", "data", "from", "seed", "px", "batch", "steps", "")]
    for run in runs:
        stages = run.plan["stages"] if run.plan else []
        begun = run_folder.read_config(run.folder) is not None
        state = "finished" if run.result else "to go on" if begun else "to run"
        rows.append(
            (
                run.link,
                _data(run),
                _start(run) or "random weights",
                str(run.config.seed),
                str(stages[-1]["image_size"] if stages else _size(run)),
                f"{stages[-1]['batch_size'] if stages else run.config.batch_size:,}",
                f"{run.plan['steps'] if run.plan else run.result['step']:,}",
                state,
            )
        )
    return _align(rows, words=3)


def summarize(runs: Sequence[Any]) -> dict[str, Any]:
    """Returns what finished runs of a chain came to, as JSON-ready values.

    Args:
      runs: of `chain.Run`, with their results.

    Returns:
      "links": for each "name", "top1" and "train_seconds" (see `_spread`),
      "wall_seconds", "device_hours" and "runs": files, checkpoints, accuracy and time
      of each; and the sums of all. Times are summed over restarts, but for what a kill
      left unwritten; device-hours are wall time times the devices of the last start.
    """
    links: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        links.setdefault(run.link, []).append(_describe(run))
    found = [{"name": name, **_sum(rows), "runs": rows} for name, rows in links.items()]
    total = {
        key: sum(link[key] for link in found)
        for key in ("wall_seconds", "device_hours")
    }
    return {"links": found, **total, "versions": run_folder.versions()}


def _describe(run: Any) -> dict[str, Any]:
    result = run.result
    seconds, devices = result["wall_seconds"], result.get("devices", 1)
    return {
        "seed": run.config.seed,
        "model": run.config.model.name,
        "data": _data(run),
        "config": os.path.join(run.folder, "config.json"),
        "start": run.config.init.checkpoint,
        "checkpoint": os.fspath(pretrained.find(run.folder) or ""),
        "step": result["step"],
        "image_size": result["image_size"],
        **{k: v for k, v in result["ema"].items() if k != "skipped"},
        "raw_top1": result["raw"]["top1"],
        "train_seconds": _train_seconds(run.folder),
        "wall_seconds": seconds,
        "devices": devices,
        "device_hours": round(seconds * devices / 3600, 4),
    }


def _train_seconds(folder: str) -> float:
    """Of training steps alone: neither compiling nor evaluating."""
    stages = run_folder.read_run(folder).stages
    return round(sum(stage.get("train_seconds", 0.0) for stage in stages), 2)


def _sum(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": rows[0]["model"],
        "data": rows[0]["data"],
        **{key: _spread([r[key] for r in rows]) for key in ("top1", "top5")},
        **({"map": _spread([r["map"] for r in rows])} if "map" in rows[0] else {}),
        "train_seconds": _spread([r["train_seconds"] for r in rows]),
        "wall_seconds": round(sum(r["wall_seconds"] for r in rows), 1),
        "device_hours": round(sum(r["device_hours"] for r in rows), 4),
    }


def _spread(values: list[float]) -> dict[str, Any]:
    """Mean, and the sample's standard deviation (n - 1); None for one value."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "runs": len(values)}


def format_summary(summary: dict[str, Any]) -> str:
    """Returns a line for each link, for people; accuracies in %, as Table 8."""
    has_map = any("map" in link for link in summary["links"])
    rows = [
        ("link", "network", "data", "checkpoint", "runs", "px", "steps", "top-1, %")
        + (("mAP, %",) if has_map else ())
        + ("training, s", "wall time", "device-hours")
    ]
    for link in summary["links"]:
        last = link["runs"][-1]
        rows.append(
            (link["name"], link["model"], link["data"], _place(link))
            + (str(len(link["runs"])),)
            + (str(last["image_size"]), f"{last['step']:,}", _percent(link["top1"]))
            + ((_percent(link.get("map")),) if has_map else ())
            + (_plus_minus(link["train_seconds"], 1, 1),)
            + (_clock(link["wall_seconds"]), f"{link['device_hours']:.3f}")
        )
    gap = ("",) * (len(rows[0]) - 3)
    hours = f"{summary['device_hours']:.3f}"
    rows.append(("total", *gap, _clock(summary["wall_seconds"]), hours))
    return _align(rows, words=4)


def _place(link: dict[str, Any]) -> str:
    """The checkpoint inside the chain's folder, or the folders of several runs."""
    seeds = [str(run["seed"]) for run in link["runs"]]
    if len(seeds) > 1:
        return f"{link['name']}/{{{','.join(seeds)}}}"
    return f"{link['name']}/{seeds[0]}/checkpoints/{link['runs'][0]['step']}"


def _percent(value: dict[str, Any] | None) -> str:
    return "" if value is None else _plus_minus(value, 100, 2)


def _plus_minus(value: dict[str, Any], factor: int, decimals: int) -> str:
    mean, spread = value["mean"], value["spread"]
    text = f"{factor * mean:.{decimals}f}"
    return text if spread is None else f"{text} +- {factor * spread:.{decimals}f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def write(summary: dict[str, Any], workdir: str) -> None:
    """Writes chain.json, and chain.csv with a line for each run, into `workdir`.

    Raises:
      InputError: the folder cannot be written.
    """
    folder = pathlib.Path(workdir)
    rows = [
        {"link": link["name"], **run}
        for link in summary["links"]
        for run in link["runs"]
    ]
    fields = list(dict.fromkeys(key for row in rows for key in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, fields, lineterminator="\n")
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


def _data(run: Any) -> str:
    data = run.config.data
    return data.name or pathlib.PurePath(data.path).name or data.source


def _start(run: Any) -> str:
    if run.start is not None:
        return f"{run.start.link}/{run.start.config.seed}"
    return run.config.init.checkpoint


def _size(run: Any) -> int:
    return run.config.progressive.image_size[1]


def _align(rows: Sequence[Sequence[str]], *, words: int) -> str:
    """Columns two spaces apart, the first `words` of them of words, then numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )

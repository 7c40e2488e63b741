"""Formats and writes the results of a search.

    search.json        all trials, the best, the Pareto front
    best/1.py ...      the best networks as configs for `ev2 train`, best first
    reward.png, pareto.png, choices.png

A row describes one trial: "trial" (index from 0), "arch" (a text of `Space.encode`, ""
before its proposal), "state" (see `ev2.sweeps.study`), "reason", "reward", "accuracy"
(fraction), "step_seconds", "params", "seconds" (wall time), "tries" (attempts), "host"
and "folder". Unknown values are None.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tabulate
from ml_collections import ConfigDict

from ev2 import files
from ev2.models import arch
from ev2.nas import space as spaces
from ev2.sweeps import study

_MEASURED = ("reward", "accuracy", "step_seconds", "params")
_NOTED = (*_MEASURED, "seconds", "host", "folder")
_SHOWN, _SHOWN_REASONS = 20, 5  # lines of the table; all are in search.json
_REASON_CHARS = 100
_WIDTH = 88  # of a line of a config
_NONE_DONE = "no trial was trained to the end"
_LETTERS = {arch.MBCONV: "M", arch.FUSED_MBCONV: "F"}

Trial = Mapping[str, Any]  # a row


def collect(shared: study.SharedStudy) -> list[dict[str, Any]]:
    """Returns a row for each trial of a search."""
    rows = []
    for outcome in shared.outcomes():
        notes = outcome.notes
        if outcome.state == study.FAILED:  # without a reward if its worker has died
            notes = {"reward": 0.0, **notes}
        rows.append(
            {
                "trial": outcome.index,
                "arch": notes.get("arch", ""),
                "state": outcome.state,
                "reason": outcome.reason,
                "tries": outcome.tries,
                **{key: notes.get(key) for key in _NOTED},
            }
        )
    return rows


def rank(rows: Iterable[Trial]) -> list[Trial]:
    """Returns the trials that are done, best reward first, then the earlier one."""
    done = [
        row
        for row in rows
        if row["state"] == study.DONE and all(row[key] is not None for key in _MEASURED)
    ]
    return sorted(done, key=lambda row: (-row["reward"], row["trial"]))


def find_front(rows: Iterable[Trial]) -> list[Trial]:
    """Returns the Pareto front of the trials that are done, best reward first.

    No trial dominates a trial of the front in accuracy, step time and parameters. Equal
    trials are all in the front.
    """
    done = rank(rows)
    costs = [(-row["accuracy"], row["step_seconds"], row["params"]) for row in done]
    return [
        row
        for row, cost in zip(done, costs, strict=True)
        if not any(
            other != cost and all(a <= b for a, b in zip(other, cost, strict=True))
            for other in costs
        )
    ]


def summarize(rows: Sequence[Trial]) -> str:
    """Returns the number of ended trials and the best reward, for a line of the log."""
    ended = sum(row["state"] in study.ENDED for row in rows)
    words = f"{ended} of {len(rows)} ended"
    for best in rank(rows)[:1]:
        words += f", best {best['reward']:.4f} (trial {best['trial']})"
    return words


def format_table(rows: Sequence[Trial], *, space: spaces.Space) -> str:
    """Returns the Pareto front, the best network and the states of all trials."""
    return "\n".join([*_format_front(rows, space), *_format_states(rows)])


def _format_front(rows: Sequence[Trial], space: spaces.Space) -> list[str]:
    front = find_front(rows)
    if not front:
        return [_NONE_DONE]
    head = ("trial", "reward", "top-1 %", "ms/step", "params M", "network")
    cells = [_make_cells(row, space) for row in front[:_SHOWN]]
    options: dict[str, Any] = {"tablefmt": "plain", "disable_numparse": True}
    options |= {"colalign": ("right",) * (len(head) - 1) + ("left",)}
    lines = ["Pareto front of accuracy, step time and parameters, best reward first"]
    lines += tabulate.tabulate(cells, head, **options).splitlines()
    if len(front) > _SHOWN:
        lines.append(f"... the first {_SHOWN} of {len(front)}; all are in search.json")
    lines += ["F4k3x2: Fused-MBConv4, k3x3, 2 layers; M: MBConv", ""]
    best = front[0]
    folder = f", trials/{best['folder']}" if best["folder"] else ""
    lines.append(f"best reward, trial {best['trial']}{folder}: {_backbone(best)}")
    return [*lines, *(f"  {stage}" for stage in _describe(best, space)), ""]


def _make_cells(row: Trial, space: spaces.Space) -> tuple[str, ...]:
    network = " ".join(
        f"{_LETTERS[stage.operator]}{stage.expand}k{stage.kernel}x{stage.layers}"
        for stage in space.to_arch(space.decode(row["arch"])).stages
    )
    if len(space.backbones) > 1:
        network = f"{_backbone(row)}: {network}"
    return (
        str(row["trial"]),
        f"{row['reward']:.4f}",
        f"{100 * row['accuracy']:.2f}",
        f"{1000 * row['step_seconds']:,.1f}",
        f"{row['params'] / 1e6:.2f}",
        network,
    )


def _backbone(row: Trial) -> str:
    return row["arch"].partition(":")[0]


def _describe(row: Trial, space: spaces.Space) -> Sequence[str]:
    return spaces.describe(space, space.decode(row["arch"]))


def _format_states(rows: Sequence[Trial]) -> list[str]:
    """Returns the number of trials in each state and the reasons of failures."""
    states = [row["state"] for row in rows]
    order = (*study.ENDED, study.RUNNING, study.WAITING)
    counts = [f"{states.count(s)} {s}" for s in order if s in states]
    lines = [f"trials: {', '.join(counts)}; {len(rows)} in all"]
    reasons: dict[str, list[int]] = {}
    for row in rows:
        if row["state"] == study.FAILED:
            reasons.setdefault(row["reason"], []).append(row["trial"])
    for reason, failed in list(reasons.items())[:_SHOWN_REASONS]:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        lines.append(f"failed, trial {failed[0]}{more}: {reason[:_REASON_CHARS]}")
    if len(reasons) > _SHOWN_REASONS:
        more = len(reasons) - _SHOWN_REASONS
        lines.append(f"failed for {more} other reasons: see search.json")
    return lines


def write(
    folder: pathlib.Path,
    rows: Sequence[Trial],
    *,
    space: spaces.Space,
    reference: Mapping[str, Any],
    make_config: Callable[[spaces.Candidate], ConfigDict],
    count: int,
) -> list[str]:
    """Writes search.json, the best configs and the plots.

    Args:
        folder: the existing folder of the search.
        rows: all trials, in their order.
        space: the searched networks.
        reference: "name", "step_seconds" and "params" of the reference network.
        make_config: returns the recipe that trains a candidate in full.
        count: number of best networks to write configs of.

    Returns:
        Lines that list the written files, and the missing ones with the reason.
    """
    best = []
    for number, row in enumerate(rank(rows)[:count], 1):
        name = f"best/{number}.py"
        (folder / name).parent.mkdir(exist_ok=True)
        config = make_config(space.decode(row["arch"]))
        text = _recipe(config, _describe_trial(row, space, reference, name))
        files.write_atomically(folder / name, text.encode())
        best.append({**row, "config": name})
    document = {
        "trials": list(rows),
        "best": best,
        "pareto": [row["trial"] for row in find_front(rows)],
        "reference": dict(reference),
        "space_size": space.size(),
    }
    path = folder / "search.json"
    files.write_atomically(path, json.dumps(document, indent=1).encode())
    lines = [f"all trials: {path}"]
    for first in best[:1]:
        path = folder / first["config"]
        lines.append(f"best: ev2 train --config={path} --workdir=FOLDER")
    return lines + _draw(folder, rows, space=space, reference=reference)


def _describe_trial(
    row: Trial, space: spaces.Space, reference: Mapping[str, Any], name: str
) -> str:
    """Returns the docstring of a config."""
    step, params = row["step_seconds"], row["params"]
    stages = "\n".join(f"    {stage}" for stage in _describe(row, space))
    return f"""\
A network around {_backbone(row)}: trial {row["trial"]} of an architecture search.

    ev2 train --config={name} --workdir=FOLDER    (where search.json is)

{stages}

Measured in the search, with its short training:

    reward          {row["reward"]:.4f}
    top-1           {100 * row["accuracy"]:.2f} %
    training step   {1000 * step:,.2f} ms, {step / reference["step_seconds"]:.2f} \
times that of {reference["name"]}
    parameters      {params:,}, {params / reference["params"]:.2f} times as many

Top-1 of this recipe: not yet measured.
"""


def _recipe(config: ConfigDict, docstring: str) -> str:
    """Returns a Python file whose `get_config` returns the config."""
    return f'''"""{docstring}"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the recipe, locked."""
    config = ConfigDict()
{_assign("config", config)}
    return config.lock()
'''


def _assign(name: str, section: ConfigDict) -> str:
    """Returns lines that set every key, nested sections last."""
    plain, nested = [], []
    for key, value in section.items():
        target = f"{name}.{key}"
        if isinstance(value, ConfigDict):
            nested += ["", f"    {target} = ConfigDict()", _assign(target, value)]
        else:
            room = _WIDTH - len(f"    {target} = ")
            plain.append(f"    {target} = {_literal(value, room)}")
    return "\n".join([*plain, *nested])


def _literal(value: Any, room: int) -> str:
    """Returns the value as formatters write it, a long sequence one item per line."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, tuple | list):
        return repr(value)
    first, last = "()" if isinstance(value, tuple) else "[]"
    items = [_literal(item, room) for item in value]
    comma = "," if isinstance(value, tuple) and len(items) == 1 else ""
    line = f"{first}{', '.join(items)}{comma}{last}"
    if len(line) <= room:
        return line
    lines = "".join(f"        {item},\n" for item in items)
    return f"{first}\n{lines}    {last}"


def _draw(
    folder: pathlib.Path,
    rows: Sequence[Trial],
    *,
    space: spaces.Space,
    reference: Mapping[str, Any],
) -> list[str]:
    """Writes the plots; returns one line about them."""
    done = rank(rows)
    if not done:
        return [f"no plots: {_NONE_DONE}"]
    from ev2.nas import plots  # matplotlib takes a second
    from ev2.report import plots as report_plots

    pruned = [row for row in rows if row["state"] == study.PRUNED]
    failed = [row for row in rows if row["state"] == study.FAILED]
    drawn = {
        "reward.png": plots.reward(done, pruned, failed),
        "pareto.png": plots.pareto(done, find_front(rows), reference),
        "choices.png": plots.choices(space, done),
    }
    for name, figure in drawn.items():
        files.write_atomically(folder / name, report_plots.to_png(figure))
    return [f"plots: {', '.join(str(folder / name) for name in drawn)}"]

"""Formats and writes the results of a sweep: table, results.csv, plots by Optuna."""

import csv
import io
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
import tabulate

from ev2 import files
from ev2.sweeps import study
from launch import space

_SHOWN = 20  # rows of the table; all are in results.csv
_REASON_CHARS = 60
_CELL_CHARS = 24


def collect(shared: study.SharedStudy, sweep: space.Sweep) -> list[dict[str, Any]]:
    """Returns a row of results.csv for each trial, by index."""
    rows = []
    for outcome in shared.outcomes():
        attempt, notes = outcome.attempt, outcome.notes
        score = attempt.value if attempt and outcome.state in study.ENDED else None
        params = space.decode(sweep, attempt.params) if attempt else {}
        row = {"trial": outcome.index, "state": outcome.state, sweep.score: score}
        row |= {key: params.get(key) for key in sweep.keys}
        row |= {"tries": outcome.tries, "seconds": notes.get("seconds")}
        row["host"] = notes.get("node") or notes.get("host")
        rows.append(row | {"folder": notes.get("folder"), "reason": outcome.reason})
    return rows


def rank(rows: Sequence[dict], sweep: space.Sweep) -> list[dict]:
    """Returns the rows in order: done (best first), pruned, failed, open."""
    sign = -1 if sweep.goal == "maximize" else 1

    def key(row: dict) -> tuple:
        score, state = row[sweep.score], row["state"]
        order = study.ENDED.index(state) if state in study.ENDED else len(study.ENDED)
        return order, 0.0 if score is None else sign * score, row["trial"]

    return sorted(rows, key=key)


def format_table(rows: Sequence[dict], sweep: space.Sweep) -> str:
    """Returns a table of the best rows and the number of trials in each state."""
    ranked = rank(rows, sweep)
    states = [row["state"] for row in ranked]
    shown = ranked[:_SHOWN]
    columns = ["trial", "state", sweep.score, *sweep.keys, "tries", "seconds", "host"]
    cells = [[_shorten(row[column]) for column in columns] for row in shown]
    table = tabulate.tabulate(cells, columns, "plain", disable_numparse=True)
    lines = [line.rstrip() for line in table.splitlines()]
    for row in shown:
        if row["state"] == study.FAILED:
            lines.append(f"trial {row['trial']}: {row['reason'][:_REASON_CHARS]}")
    if len(rows) > _SHOWN:
        lines.append(f"... the first {_SHOWN} of {len(rows)}; all are in results.csv")
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    return "\n".join([*lines, f"{len(rows)} trials: {counts}"])


def _shorten(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 3]}..."


def write(
    out: pathlib.Path, shared: optuna.Study, sweep: space.Sweep, rows: Sequence[dict]
) -> list[str]:
    """Writes results.csv and the plots into `out`.

    Returns:
        Lines that list the written files, and the missing ones with the reason.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rank(rows, sweep))
    files.write_atomically(out / "results.csv", text.getvalue().encode())
    lines = [f"table: {out / 'results.csv'}"]
    for name in ("parallel_coordinate", "param_importances"):
        path = out / f"{name}.png"
        try:
            notes = _plot(shared, sweep, name, path)
            lines.append(f"plot: {path}{f' ({notes[0]})' if notes else ''}")
        except (ValueError, RuntimeError) as error:
            lines.append(f"no {path.name}: {error}")
    return lines


def _plot(
    shared: optuna.Study, sweep: space.Sweep, name: str, path: pathlib.Path
) -> list[str]:
    """Draws a plot and returns the warnings of Optuna."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    complete = (optuna.trial.TrialState.COMPLETE,)
    count = len(shared.get_trials(deepcopy=False, states=complete))
    if not count:
        raise ValueError("no trial was trained to the end")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        axes = getattr(plots, f"plot_{name}")(shared, target_name=sweep.score)
    figure = axes.get_figure(root=True)
    axes.set_title("", loc="left")  # Optuna's title
    title = f"{shared.study_name}: {sweep.score} of {count} trials to the end"
    axes.set_title(title, pad=16)
    figure.set_size_inches(3 + 1.8 * max(len(sweep.keys), 3), 5)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    files.write_atomically(path, image.getvalue())
    experimental = optuna.exceptions.ExperimentalWarning
    shown = [w for w in caught if not issubclass(w.category, experimental)]
    return [" ".join(str(w.message).split()) for w in shown]

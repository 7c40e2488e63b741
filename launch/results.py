"""What a sweep has found: a table, results.csv, and plots by Optuna."""

import csv
import io
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import optuna

from ev2 import files
from ev2.sweeps import study as tries
from launch import space

State = tries.State
_SHOWN = 20  # rows of the table; all are in results.csv
_REASON_CHARS = 60
_CELL_CHARS = 24


def collect(study: optuna.Study, sweep: space.Sweep, retries: int) -> list[dict]:
    """Returns a row for each point, in their order; see the columns of results.csv."""
    grouped = tries.group(study.get_trials(deepcopy=False))
    rows = []
    for point in range(sweep.trials):
        own = grouped.get(point, [])
        outcome = tries.settled(own, retries)
        rows.append(_row(point, own, outcome, sweep))
    return rows


def _row(point: int, own: Sequence[Any], outcome: Any, sweep: space.Sweep) -> dict:
    """`own` are the point's trials, `outcome` the one that counts or None."""
    shown = outcome or (own[-1] if own else None)
    notes = shown.user_attrs if shown else {}
    states = {
        State.COMPLETE: tries.DONE,
        State.PRUNED: tries.PRUNED,
        State.RUNNING: "running",
    }
    state = tries.FAILED if outcome else "waiting"
    state = states.get(shown.state, state) if shown else state
    params = space.decode(sweep, shown.params) if shown else {}
    return {
        "trial": point + 1,
        "state": state,
        sweep.score: outcome.value if outcome and outcome.values else None,
        **{key: params.get(key) for key in sweep.keys},
        "tries": len(own),
        "seconds": notes.get("seconds"),
        "host": notes.get("node") or notes.get("host"),
        "folder": notes.get("folder"),
        "reason": notes.get("reason", "") if outcome else "",
    }


def rank(rows: Sequence[dict], sweep: space.Sweep) -> list[dict]:
    """Returns `rows`: trained to the end first, best first; then the others."""
    sign = -1 if sweep.goal == "maximize" else 1

    def key(row: dict) -> tuple:
        score = row[sweep.score]
        order = (tries.DONE, tries.PRUNED, tries.FAILED)
        place = order.index(row["state"]) if row["state"] in order else len(order)
        return place, 0.0 if score is None else sign * score, row["trial"]

    return sorted(rows, key=key)


def format_table(rows: Sequence[dict], sweep: space.Sweep) -> str:
    """Returns the best rows for people, and how many ended how."""
    states = [row["state"] for row in rank(rows, sweep)]
    summary = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    shown = rank(rows, sweep)[:_SHOWN]
    columns = ["trial", "state", sweep.score, *sweep.keys, "tries", "seconds", "host"]
    lines = [columns, *([_cell(row[c]) for c in columns] for row in shown)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    for row in shown:
        if row["state"] == tries.FAILED:
            text.append(f"trial {row['trial']}: {row['reason'][:_REASON_CHARS]}")
    if len(rows) > _SHOWN:
        text.append(f"... the first {_SHOWN} of {len(rows)}; all are in results.csv")
    return "\n".join([*text, f"{len(rows)} trials: {summary}"])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 3]}..."


def write(
    out: pathlib.Path, study: optuna.Study, sweep: space.Sweep, rows: Sequence[dict]
) -> list[str]:
    """Writes results.csv and the plots into `out`.

    Returns:
      Lines for people: what was written, what not and why.
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
            notes = _plot(study, sweep, name, path)
            lines.append(f"plot: {path}{f' ({notes[0]})' if notes else ''}")
        except (ValueError, RuntimeError) as error:
            lines.append(f"no {path.name}: {error}")
    return lines


def _plot(study: optuna.Study, sweep: space.Sweep, name: str, path) -> list[str]:
    """Draws a plot; returns what Optuna has to say about it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    done = sum(t.state == State.COMPLETE for t in study.get_trials(False))
    if not done:
        raise ValueError("no trial was trained to the end")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if name == "parallel_coordinate":
            axes = plots.plot_parallel_coordinate(study, target_name=sweep.score)
        else:
            axes = plots.plot_param_importances(study, target_name=sweep.score)
    figure = axes.get_figure(root=True)
    assert figure is not None
    axes.set_title("", loc="left")  # Optuna's own
    title = f"{study.study_name}: {sweep.score} of {done} trials to the end"
    axes.set_title(title, pad=16)
    figure.set_size_inches(3 + 1.8 * max(len(sweep.keys), 3), 5)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    files.write_atomically(path, picture.getvalue())
    experimental = optuna.exceptions.ExperimentalWarning
    said = [w for w in caught if not issubclass(w.category, experimental)]
    return [" ".join(str(w.message).split()) for w in said]

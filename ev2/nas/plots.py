"""Draws the plots of a search from rows of `ev2.nas.results`.

`done` holds one or more trials that are done, best reward first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colors, ticker
from matplotlib import figure as mpl_figure

from ev2.models import arch
from ev2.nas import space as spaces
from ev2.report import plots

_BEST_PART = 3  # the best third
_CELL_IN = (0.64, 0.46)  # width and height
_WORDS = {arch.MBCONV: "MBConv", arch.FUSED_MBCONV: "Fused-\nMBConv"}
# Title and text of a value for each choice of a stage.
_CHOICES = {
    "operator": ("Operator", lambda value: _WORDS[value]),
    "layers": ("Layers added", lambda value: f"{value:+d}" if value else "0"),
    "kernel": ("Kernel", lambda value: f"{value}x{value}"),
    "expand": ("Expand ratio", str),
}

Trial = Mapping[str, Any]  # a row


def reward(
    done: Sequence[Trial], pruned: Sequence[Trial], failed: Sequence[Trial]
) -> mpl_figure.Figure:
    """Draws the rewards in order of the trials, and the best so far.

    The axis starts at the lowest reward of a trial that is done; lower rewards of
    pruned and failed trials are drawn on the axis.
    """
    figure = plots.new_figure(4.0)
    axes = figure.subplots()
    title = "Reward by trial"
    if pruned or failed:
        title += "; rewards below the axis are drawn on it"
    plots.style_axes(axes, title)
    in_order = sorted(done, key=lambda row: row["trial"])
    numbers, rewards = _column(in_order, "trial"), _column(in_order, "reward")
    given = [row["reward"] or 0.0 for row in pruned]
    low, high = rewards.min(), max([*rewards, *given])
    margin = 0.1 * (high - low) or 0.01
    low -= margin
    axes.set_ylim(low, high + margin)
    last = max(row["trial"] for row in (*done, *pruned, *failed))
    so_far = np.maximum.accumulate(rewards)
    steps = [*numbers, last], [*so_far, so_far[-1]]
    axes.step(*steps, where="post", color=plots.TRAIN, label="best so far")
    for rows, values, marker, color, label in (
        (in_order, rewards, "o", plots.EMA, "done"),
        (pruned, np.maximum(given, low), "v", plots.RAW, "pruned"),
        (failed, np.full(len(failed), low), "x", plots.TEXT, "failed (0)"),
    ):
        if rows:  # no label without trials
            axes.plot(
                *(_column(rows, "trial"), values, marker),
                color=color,
                label=label,
                markersize=5,
                clip_on=False,
                zorder=3,
            )
    best = done[0]["trial"], done[0]["reward"]
    side = "left" if best[0] < last / 10 else "center"  # off the numbers of the axis
    plots.annotate(axes, best, f"{best[1]:.4f}", ha=side, xytext=(0, 6))
    axes.set_xlim(-1, last + 1)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True))
    axes.set_xlabel("Trial", fontsize=plots.TEXT_PT, color=plots.TEXT)
    _legend(figure, 4)
    return figure


def pareto(
    done: Sequence[Trial], front: Sequence[Trial], reference: Mapping[str, Any]
) -> mpl_figure.Figure:
    """Draws accuracy against step time, parameters as colour.

    The line joins the front of accuracy and step time alone, so points of the front of
    all three may be below it.
    """
    figure = plots.new_figure(4.9, 6.4)
    axes = figure.subplots()
    plots.style_axes(axes, "Top-1 accuracy (%), after the search's short training")
    name = "front of accuracy and step time"
    axes.step(*_join(front), where="post", color=plots.TRAIN, lw=1.2, label=name)
    rings = {"facecolors": "none", "edgecolors": plots.TRAIN, "linewidths": 1.6}
    name = "front of all three, with parameters"
    axes.scatter(*_measure(front), s=80, zorder=6, label=name, **rings)
    params = _column(done, "params") / 1e6
    points = axes.scatter(*_measure(done), c=params, cmap="viridis", s=34, zorder=5)
    name = f"best reward, trial {done[0]['trial']}"
    star = {"marker": "*", "color": plots.TEXT, "s": 700, "linewidths": 0}
    axes.scatter(*_measure(done[:1]), zorder=3, label=name, **star)
    name = f"step time of {reference['name']}"
    dashes = {"color": plots.TEXT, "lw": 1, "linestyle": (0, (4, 3)), "zorder": 1}
    axes.axvline(1000 * reference["step_seconds"], label=name, **dashes)
    bar = figure.colorbar(points, ax=axes, aspect=30, pad=0.02)
    bar.set_label("Parameters (million)", fontsize=plots.TEXT_PT, color=plots.TEXT)
    bar.outline.set_visible(False)  # pyright: ignore
    bar.ax.tick_params(labelsize=plots.SMALL_PT, labelcolor=plots.MUTED, length=0)
    axes.set_xlabel("Training step (ms)", fontsize=plots.TEXT_PT, color=plots.TEXT)
    _legend(figure, 2)
    return figure


def _measure(rows: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """Returns step times in ms and accuracies in %."""
    return 1000 * _column(rows, "step_seconds"), 100 * _column(rows, "accuracy")


def _join(front: Sequence[Trial]) -> tuple[list[float], list[float]]:
    """Returns the front of step times and accuracies alone, both rising."""
    steps, accuracies = [], []
    order = sorted(front, key=lambda row: (row["step_seconds"], -row["accuracy"]))
    for step, accuracy in zip(*_measure(order), strict=True):
        if not accuracies or accuracy > accuracies[-1]:
            steps.append(step)
            accuracies.append(accuracy)
    return steps, accuracies


def choices(space: spaces.Space, done: Sequence[Trial]) -> mpl_figure.Figure:
    """Draws the frequency of each value in the best third and in all trials done.

    One panel per choice, one row per stage. A cell has the percentage in the best
    third, and in brackets in all trials. Values that no network has are grey.
    """
    best = done[: -(-len(done) // _BEST_PART)]
    stages = len(space.choices) // len(_CHOICES)  # the backbone is not a stage's choice
    widths = [max(2, len(space.choices[f"stage1_{key}"])) for key in _CHOICES]
    width, height = _CELL_IN
    figure = plots.new_figure(1.5 + height * stages, 1.0 + width * sum(widths))
    panels = figure.subplots(1, len(_CHOICES), sharey=True, width_ratios=widths)
    for axes, (key, (title, word)) in zip(panels, _CHOICES.items(), strict=True):
        values = space.choices[f"stage1_{key}"]
        shown = [count_fractions(space, rows, key) for rows in (best, done)]
        _draw_cells(axes, *shown)
        plots.style_axes(axes, title)
        axes.set_facecolor(plots.BAND)
        axes.grid(False)
        axes.set_xticks(range(len(values)), [word(value) for value in values])
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)
    panels[0].set_yticks(range(stages), [f"stage {s + 1}" for s in range(stages)])
    title = "Fraction in the best third of the networks "
    title += f"({len(best)} of {len(done)}), %; in brackets: in all of them"
    style = {"fontsize": plots.TEXT_PT, "color": plots.TEXT, "x": 0.01, "ha": "left"}
    figure.suptitle(title, **style)
    return figure


def count_fractions(space: spaces.Space, rows: Sequence[Trial], key: str) -> np.ndarray:
    """Returns the fraction of networks with each value of a choice.

    Returns:
        `[stages, values] float64`, of the networks with the stage; NaN without one.
    """
    values = space.choices[f"stage1_{key}"]
    counts = np.zeros((len(space.choices) // len(_CHOICES), len(values)))
    for row in rows:
        candidate = space.decode(row["arch"])
        for stage in range(len(space.to_arch(candidate).stages)):
            value = candidate[f"stage{stage + 1}_{key}"]
            counts[stage, values.index(value)] += 1
    total = counts.sum(axis=1, keepdims=True)
    empty = np.full(counts.shape, np.nan)
    return np.divide(counts, total, out=empty, where=total > 0)


def _draw_cells(axes, best: np.ndarray, everyone: np.ndarray) -> None:
    """Draws fractions as a heat map with numbers."""
    shades = ["white", plots.EMA]
    colour_map = colors.LinearSegmentedColormap.from_list("fraction", shades)
    shown = np.where(everyone > 0, best, np.nan)
    axes.imshow(shown, cmap=colour_map, vmin=0, vmax=1, aspect="auto")
    for (stage, value), fraction in np.ndenumerate(shown):
        if np.isnan(fraction):
            continue
        colour = "white" if fraction > 0.65 else plots.TEXT
        text = f"{100 * fraction:.0f} ({100 * everyone[stage, value]:.0f})"
        options = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
        axes.text(value, stage, text, **options)


def _column(rows: Sequence[Trial], key: str) -> np.ndarray:
    """Returns the values of a key, `[rows] float64`."""
    return np.array([row[key] for row in rows], float)


def _legend(figure: mpl_figure.Figure, columns: int) -> None:
    """Draws the legend below the axes."""
    style = {"frameon": False, "fontsize": plots.SMALL_PT, "labelcolor": plots.TEXT}
    style |= {"handletextpad": 0.4, "columnspacing": 1.4}
    figure.legend(loc="outside lower center", ncols=columns, **style)

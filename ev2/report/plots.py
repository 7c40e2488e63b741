"""Draws the curves of a run as matplotlib figures, without global state.

Figures of single classes are in `class_plots`.
"""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import patheffects, ticker

from ev2 import progressive
from ev2.train.workdir import Run

WIDTH_IN = 5.6  # one column of the page, and of most papers without shrinking
WIDE_IN = 8.0  # the whole page
CSS_PX_PER_IN = 100  # size at which the page shows a figure
PNG_DPI = 2 * CSS_PX_PER_IN  # two pixels for each CSS pixel
TEXT_PT, SMALL_PT = 10.5, 9.5  # 8 px or more when a phone shrinks a figure
MAX_LABELLED_STAGES = 8  # more stages than this are shaded but not named
SMOOTH_FROM_POINTS = 120  # below this every logged point can be read as it is

# The three colors of series differ for people with any color vision and have a contrast
# of at least 3:1 to white; line styles repeat the distinction.
TEXT, MUTED, GRID, BAND = "#1f2328", "#59636e", "#e1e5ea", "#f2f4f7"
TRAIN, EMA, RAW = "#c9540a", "#0b66b2", "#00876c"

Record = dict[str, Any]


def to_png(figure: mpl_figure.Figure) -> bytes:
    """Returns the figure as a PNG of `PNG_DPI` dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> mpl_figure.Figure:
    """Returns an empty figure on white."""
    size_in = width_in, height_in
    return mpl_figure.Figure(figsize=size_in, layout="constrained", facecolor="white")


def style_axes(axes: mpl_axes.Axes, title: str = "") -> None:
    """Sets the report's style of axes: title with unit, light grid, no box."""
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", fontsize=TEXT_PT, color=TEXT)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(labelsize=SMALL_PT, color=MUTED, labelcolor=MUTED)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def annotate(axes: mpl_axes.Axes, position, text: str, **options) -> None:
    """Writes a small text just above a position, in data coordinates."""
    defaults = {"xytext": (0, 3), "ha": "center", "color": TEXT, "fontsize": SMALL_PT}
    axes.annotate(text, position, textcoords="offset points", **{**defaults, **options})


def brief(value: float) -> str:
    """Returns a size or strength with the digits that matter: 0.067, 8.3, 11.7, 128."""
    return f"{value:.2g}" if value < 10 else f"{value:.1f}".removesuffix(".0")


def title(strength: progressive.Strength) -> str:
    """Returns the label of a strength with a capital first letter."""
    return strength.label[0].upper() + strength.label[1:]


def used_strengths(stages: Sequence[Record]) -> list[progressive.Strength]:
    """Returns the strengths that are above 0 in any stage."""
    return [
        strength
        for strength in progressive.STRENGTHS
        if any(stage["strengths"].get(strength.name) for stage in stages)
    ]


def progressive_learning(run: Run) -> mpl_figure.Figure:
    """Draws image size and regularization by stage above the accuracy of the run."""
    strengths = used_strengths(run.stages)
    rows_in = 0.36 * len(strengths)
    heights = (1.1, rows_in, 2.4) if strengths else (1.1, 2.4)
    figure = new_figure(sum(heights) + 0.75, WIDE_IN)
    panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    edges = _edges(run.stages)
    size_axes, axes = panels[0], panels[-1]
    _draw_steps(size_axes, edges, [s["image_size"] for s in run.stages], " px")
    size_axes.set_title("Image size", loc="left", fontsize=TEXT_PT, color=TEXT)
    size_axes.set_yticks([])
    size_axes.grid(False)
    if strengths:
        _draw_strength_rows(panels[1], run.stages, strengths)
    style_axes(axes, "Top-1 accuracy (%)")
    _plot_logged(axes, run.train, "top1", 100.0, label="training images, augmented")
    size = f" at {run.evals[-1]['image_size']} px" if run.evals else ""
    _plot_test_accuracy(axes, run.evals, {"ema": f"test images{size}, EMA weights"})
    for panel in panels:
        panel.tick_params(bottom=panel is axes)
        for edge in edges[1:-1]:
            panel.axvline(edge, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    _legend(axes)
    _epoch_axis(axes, run)
    return figure


def _draw_strength_rows(axes, stages, strengths) -> None:
    """Draws one row per strength and a cell per stage, darker where it is stronger."""
    edges = _edges(stages)
    values = np.array([[s["strengths"][x.name] for s in stages] for x in strengths])
    shades = 0.08 + 0.5 * values / values.max(axis=1, keepdims=True)
    for row, column in np.ndindex(values.shape):
        left, width = edges[column], edges[column + 1] - edges[column]
        alpha = shades[row, column]
        axes.barh(row, width, 0.82, left, color=EMA, alpha=alpha, linewidth=0)
        if len(stages) <= MAX_LABELLED_STAGES:
            label = brief(float(values[row, column]))
            axes.text(left + width / 2, row, label, ha="center", va="center")
    style_axes(axes, "Regularization")
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(len(strengths)), [title(x) for x in strengths], color=TEXT)
    axes.set_ylim(len(strengths) - 0.5, -0.5)
    for text in axes.texts:
        text.set(fontsize=SMALL_PT, color=TEXT)


def _draw_steps(axes, edges, heights, unit: str = "") -> None:
    """Draws a value per stage as filled steps, with the value above each."""
    style_axes(axes)
    axes.set_ylim(0, 1.25 * max(heights))
    axes.stairs(heights, edges, baseline=None, color=EMA, linewidth=1.8)
    axes.stairs(heights, edges, color=EMA, alpha=0.13, fill=True)
    if len(heights) <= MAX_LABELLED_STAGES:
        spans = itertools.pairwise(edges)
        for height, (first, last) in zip(heights, spans, strict=True):
            annotate(axes, ((first + last) / 2, height), f"{brief(height)}{unit}")


def learning_curves(run: Run) -> mpl_figure.Figure:
    """Draws the training loss above top-1 accuracy (train, EMA, raw), by epoch."""
    figure = new_figure(4.9)
    loss_axes, axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    style_axes(loss_axes, "Training loss (cross-entropy, nats)")
    style_axes(axes, "Top-1 accuracy (%)")
    _plot_logged(loss_axes, run.train, "loss", 1.0)
    losses = _column(run.train, "loss")
    if len(losses) > SMOOTH_FROM_POINTS:  # one bad batch should not set the scale
        low, high = np.nanpercentile(losses, (0.2, 99.8))
        margin = 0.05 * (high - low) or 1.0
        loss_axes.set_ylim(low - margin, high + margin)
    _plot_logged(axes, run.train, "top1", 100.0, label="train, augmented")
    labels = {"ema": "test, EMA", "raw": "test, raw"}
    _plot_test_accuracy(axes, run.evals, labels)
    _legend(axes)
    _shade([loss_axes, axes], run.stages)
    _epoch_axis(axes, run)
    return figure


def stages(run: Run) -> mpl_figure.Figure:
    """Draws image size and every strength in use as steps over the epochs."""
    strengths = used_strengths(run.stages)
    titles = ["Image size (px)", *(f"{title(s)} ({s.unit})" for s in strengths)]
    values = [[stage["image_size"] for stage in run.stages]]
    values += [[stage["strengths"][s.name] for stage in run.stages] for s in strengths]
    columns = min(len(titles), 2)
    rows = -(-len(titles) // columns)
    figure = new_figure(0.4 + 1.5 * rows)
    for i, heights in enumerate(values):
        axes = figure.add_subplot(rows, columns, i + 1)
        _draw_steps(axes, _edges(run.stages), heights)
        axes.set_title(titles[i], loc="left", fontsize=TEXT_PT, color=TEXT)
        axes.grid(len(run.stages) > MAX_LABELLED_STAGES, axis="y")
        axes.yaxis.set_major_locator(ticker.MaxNLocator(3))
        _epoch_axis(axes, run)
        if i < len(values) - columns:
            axes.set_xlabel("")
    return figure


def learning_rate(run: Run) -> mpl_figure.Figure:
    """Draws the learning rate of the logged steps, by epoch."""
    figure = new_figure(4.0)
    axes = figure.subplots()
    style_axes(axes, "Learning rate")
    epochs, rates = _column(run.train, "epoch"), _column(run.train, "learning_rate")
    marker = "o" if len(rates) == 1 else ""
    axes.plot(epochs, rates, color=EMA, linewidth=1.6, marker=marker)
    axes.set_ylim(0, 1.08 * np.nanmax(rates) or 1.0)
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.3g}"))
    _shade([axes], run.stages)
    _epoch_axis(axes, run)
    return figure


def throughput(run: Run) -> mpl_figure.Figure:
    """Draws images per second above the fraction of time spent waiting for data."""
    figure = new_figure(4.0)
    axes, wait_axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    style_axes(axes, "Throughput (images/s), and the median of each stage")
    style_axes(wait_axes, "Waiting for data (% of the time)")
    epochs = _column(run.train, "epoch")
    rates = _column(run.train, "images_per_second")
    axes.plot(epochs, rates, "o", color=EMA, alpha=0.55, markersize=2.5, mew=0)
    for rows in _rows_by_stage(run.train).values():
        median = float(np.nanmedian(rates[rows]))
        ends = epochs[rows[0]], epochs[rows[-1]]
        axes.plot(ends, (median, median), color=TEXT, linewidth=1.2)
        if len(run.stages) <= MAX_LABELLED_STAGES:
            middle = (ends[0] + ends[1]) / 2
            halo = [patheffects.withStroke(linewidth=3, foreground="white")]
            text = f"{median:,.0f}"
            annotate(axes, (middle, median), text, path_effects=halo)
    axes.set_ylim(0, 1.2 * np.nanmax(rates) or 1.0)
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    _plot_logged(wait_axes, run.train, "data_wait_share", 100.0)
    # At least 10 % high, so that one percent looks as small as it is.
    wait_axes.set_ylim(0, max(10.0, wait_axes.get_ylim()[1]))
    _shade([axes, wait_axes], run.stages)
    _epoch_axis(wait_axes, run)
    return figure


def _plot_logged(axes, train, key: str, scale: float, label: str | None = None) -> None:
    """Plots every logged point; with many points, their running mean on top."""
    epochs, values = _column(train, "epoch"), scale * _column(train, key)
    many = len(values) > SMOOTH_FROM_POINTS
    style = {"linewidth": 0.7, "alpha": 0.35} if many else {"linewidth": 1.4}
    marker = "o" if len(values) == 1 else ""
    shown = None if many or not len(values) else label
    axes.plot(epochs, values, color=TRAIN, marker=marker, label=shown, **style)
    if not many:
        return
    window = max(5, len(values) // 60)
    for rows in _rows_by_stage(train).values():  # a jump between stages is real
        smooth = _running_mean(values[rows], window)
        axes.plot(epochs[rows], smooth, color=TRAIN, linewidth=1.6, label=label)
        label = None


def _plot_test_accuracy(axes, evals, labels: dict[str, str]) -> None:
    """Plots top-1 of the weights in `labels`, and the last EMA value in digits."""
    if not evals:
        return
    epochs = _column(evals, "epoch")
    styles = {"ema": ("-o", EMA, EMA, 4), "raw": ("--s", RAW, "white", 3)}
    for key, label in labels.items():
        style, color, fill, order = styles[key]
        top1 = [100 * record[key]["top1"] for record in evals]
        look = {"color": color, "markersize": 4, "markerfacecolor": fill}
        look["clip_on"] = False  # the last point is on the edge
        axes.plot(epochs, top1, style, label=label, zorder=order, **look)
    last = 100 * evals[-1]["ema"]["top1"]
    annotate(axes, (epochs[-1], last), f"{last:.2f}", ha="right", xytext=(0, 5))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.08 * (high - low))  # room for the digits


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the centred mean over `window` points, over fewer at the ends."""
    window = min(window, len(values))
    kernel = np.ones(window)
    total = np.convolve(values, kernel, mode="same")
    return total / np.convolve(np.ones(len(values)), kernel, mode="same")


def _shade(panels, stages) -> None:
    """Shades every other stage, and writes its image size above the first panel."""
    if not stages:
        return
    edges = _edges(stages)
    for axes in panels:
        for first, last in zip(edges[1:-1:2], edges[2::2], strict=False):
            axes.axvspan(first, last, color=BAND, linewidth=0, zorder=-1)
    if len(stages) > MAX_LABELLED_STAGES:
        return
    title = panels[0].get_title("left")
    panels[0].set_title(title, loc="left", pad=19, fontsize=TEXT_PT)  # make room
    above = {"xycoords": panels[0].get_xaxis_transform(), "color": MUTED}
    for stage, (first, last) in zip(stages, itertools.pairwise(edges), strict=True):
        size = f"{stage['image_size']} px"
        annotate(panels[0], ((first + last) / 2, 1.0), size, **above)


def _legend(axes) -> None:
    if not axes.get_legend_handles_labels()[1]:
        return
    spacing = {"handlelength": 1.6, "columnspacing": 1.2, "borderaxespad": 0.3}
    style = {"frameon": False, "fontsize": SMALL_PT, "labelcolor": TEXT}
    anchor = (1.01, 0.985)
    axes.legend(loc="lower right", bbox_to_anchor=anchor, ncol=3, **style, **spacing)


def _epoch_axis(axes, run: Run) -> None:
    """Spans the whole plan, so that the missing part of an unfinished run is empty."""
    ends = [r["epoch"] for r in (*run.train, *run.evals)] + list(_edges(run.stages))
    if max(ends) > 0:
        axes.set_xlim(0, max(ends))
    whole = max(ends) > 4  # shorter runs are read in parts of an epoch
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=whole))
    axes.set_xlabel("Epoch", fontsize=TEXT_PT, color=TEXT)


def _edges(stages: Sequence[Record]) -> np.ndarray:
    """Returns the epochs at which stages begin, and the last end: `[stages + 1]`."""
    return np.cumsum([0.0] + [stage["epochs"] for stage in stages])


def _rows_by_stage(train: Sequence[Record]) -> dict[int, list[int]]:
    """Returns the indices of the training records of each stage."""
    rows: dict[int, list[int]] = {}
    for row, record in enumerate(train):
        rows.setdefault(record["stage"], []).append(row)
    return rows


def _column(rows: Sequence[Record], key: str) -> np.ndarray:
    """Returns one key of all records, `[records] float64`, NaN where it is missing."""
    return np.array([row.get(key, np.nan) for row in rows], float)

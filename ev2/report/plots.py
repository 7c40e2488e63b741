"""Curves of a run as matplotlib figures: values in, a figure out, no global state.

Every function takes the records of `metrics.jsonl` and the rows of `stages.json`
as they were written, and a `Theme`; the pictures of classes are in `class_plots`.
"""

import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker

WIDTH_IN = 5.6  # one column of the page, and of most papers without shrinking
CSS_PX_PER_IN = 100  # size at which the page shows a figure
PNG_DPI = 2 * CSS_PX_PER_IN  # two pixels for each CSS pixel
TEXT_PT, SMALL_PT = 10.5, 9.5  # 8 px or more when a phone shrinks a figure
MAX_LABELLED_STAGES = 8  # more stages than this are shaded but not named
MAX_NUMBERED_STEPS = 6  # more steps than this are read off the axis
SMOOTH_FROM_POINTS = 120  # below this every logged point can be read as it is

# Title and key of each strength, in the order of the stage table.
STRENGTHS = (
    ("RandAugment (magnitude)", "randaugment"),
    ("Dropout (probability)", "dropout"),
    ("Drop path (probability)", "drop_path"),
    ("Mixup (alpha)", "mixup"),
    ("CutMix (alpha)", "cutmix"),
)

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one appearance, as hex strings.

    The three series colours are told apart by people with any colour vision and
    keep a contrast of at least 3:1 to the background; line styles repeat the
    distinction.
    """

    name: str
    background: str
    text: str
    muted: str
    grid: str
    band: str
    train: str
    ema: str
    raw: str


LIGHT = Theme(
    name="light",
    background="#ffffff",
    text="#1f2328",
    muted="#59636e",
    grid="#e1e5ea",
    band="#f2f4f7",
    train="#c9540a",
    ema="#0b66b2",
    raw="#00876c",
)
DARK = Theme(
    name="dark",
    background="#161b22",
    text="#e6edf3",
    muted="#9aa4af",
    grid="#2d343d",
    band="#1d242d",
    train="#f59245",
    ema="#5db7f5",
    raw="#3fc7a3",
)


def to_png(figure: mpl_figure.Figure) -> bytes:
    """Returns the figure as a PNG of `PNG_DPI` dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(theme: Theme, height_in: float, width_in: float = WIDTH_IN):
    """Returns an empty figure with the theme's background."""
    return mpl_figure.Figure(
        figsize=(width_in, height_in),
        layout="constrained",
        facecolor=theme.background,
    )


def dress(axes: mpl_axes.Axes, theme: Theme, title: str = "") -> None:
    """Gives axes the house look: title with unit, light grid, no box."""
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", fontsize=TEXT_PT, color=theme.text)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.muted)
    axes.tick_params(labelsize=SMALL_PT, color=theme.muted, labelcolor=theme.muted)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def brief(value: float) -> str:
    """Returns a size or strength with the digits that matter: 0.067, 8.3, 11.7, 128."""
    return f"{value:.2g}" if value < 10 else f"{value:.1f}".removesuffix(".0")


def note(axes, position, text, theme, **options) -> None:
    """Writes a small text just above a position, in data coordinates."""
    usual = {"xytext": (0, 3), "ha": "center", "color": theme.text}
    axes.annotate(
        text,
        position,
        textcoords="offset points",
        fontsize=SMALL_PT,
        **{**usual, **options},
    )


def learning_curves(
    train: Sequence[Record], evals: Sequence[Record], stages: Sequence[Record], theme
) -> mpl_figure.Figure:
    """Returns training loss above top-1 accuracy (train, EMA, raw), by epoch."""
    figure = new_figure(theme, 4.9)
    loss_axes, axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    dress(loss_axes, theme, "Training loss (cross-entropy, nats)")
    dress(axes, theme, "Top-1 accuracy (%)")
    _plot_logged(loss_axes, train, "loss", 1.0, theme)
    _scale_without_outliers(loss_axes, _column(train, "loss"))
    _plot_logged(axes, train, "top1", 100.0, theme, label="train, augmented")
    epochs = _column(evals, "epoch")
    for weights, name, style, marker, colour, fill, order in (
        ("ema", "EMA", "-", "o", theme.ema, theme.ema, 4),
        ("raw", "raw", "--", "s", theme.raw, theme.background, 3),
    ):
        axes.plot(
            epochs,
            [100 * record[weights]["top1"] for record in evals],
            style,
            color=colour,
            marker=marker,
            markersize=4,
            markerfacecolor=fill,
            clip_on=False,  # the last one lies on the edge
            label=f"test, {name}" if evals else None,
            zorder=order,
        )
    if evals:
        last = 100 * evals[-1]["ema"]["top1"]
        note(axes, (epochs[-1], last), f"{last:.1f}", theme, ha="right", xytext=(0, 5))
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.08 * (high - low))  # room for the note
    if train or evals:
        _legend(axes, theme)
    _shade([loss_axes, axes], stages, theme)
    _epoch_axis(axes, train, evals, stages, theme)
    return figure


def stage_steps(stages: Sequence[Record], theme: Theme) -> mpl_figure.Figure:
    """Returns image size and every strength as steps over the epochs."""
    figure = new_figure(theme, 4.9)
    panels = figure.subplots(3, 2, sharex=True).flat
    edges = _edges(stages)
    values = [[s["image_size"] for s in stages]]
    values += [[s["strengths"][key] for s in stages] for _, key in STRENGTHS]
    titles = ["Image size (px)"] + [title for title, _ in STRENGTHS]
    for axes, title, heights in zip(panels, titles, values, strict=True):
        dress(axes, theme, title)
        axes.grid(len(stages) > MAX_NUMBERED_STEPS, axis="y")
        axes.set_ylim(0, 1.25 * max(heights) or 1.0)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(3))
        if not any(heights):
            axes.set_yticks([])
            note(axes, (edges[-1] / 2, 0.4), "off", theme)
            continue
        axes.stairs(heights, edges, baseline=None, color=theme.ema, linewidth=1.8)
        axes.stairs(heights, edges, color=theme.ema, alpha=0.13, fill=True)
        if len(stages) <= MAX_NUMBERED_STEPS:
            _number_steps(axes, edges, heights, theme)
    for axes in figure.axes[-2:]:
        _epoch_axis(axes, (), (), stages, theme)
    return figure


def learning_rate(
    train: Sequence[Record], stages: Sequence[Record], theme: Theme
) -> mpl_figure.Figure:
    """Returns the learning rate of the logged steps, by epoch."""
    figure = new_figure(theme, 4.0)
    axes = figure.subplots()
    dress(axes, theme, "Learning rate")
    rates = _column(train, "learning_rate")
    marker = "o" if len(rates) == 1 else ""
    epochs = _column(train, "epoch")
    axes.plot(epochs, rates, color=theme.ema, linewidth=1.6, marker=marker)
    axes.set_ylim(0, 1.08 * np.nanmax(rates) or 1.0)
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.3g}"))
    _shade([axes], stages, theme)
    _epoch_axis(axes, train, (), stages, theme)
    return figure


def throughput(
    train: Sequence[Record], stages: Sequence[Record], theme: Theme
) -> mpl_figure.Figure:
    """Returns images per second above the share of time spent waiting for data."""
    figure = new_figure(theme, 4.0)
    axes, wait_axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    dress(axes, theme, "Throughput (images/s), and the median of each stage")
    dress(wait_axes, theme, "Waiting for data (% of the time)")
    epochs, rates = _column(train, "epoch"), _column(train, "images_per_second")
    axes.plot(epochs, rates, "o", color=theme.ema, alpha=0.55, markersize=2.5, mew=0)
    for rows in _by_stage(train).values():
        median = float(np.nanmedian(rates[rows]))
        ends = epochs[rows[0]], epochs[rows[-1]]
        axes.plot(ends, (median, median), color=theme.text, linewidth=1.2)
        if len(stages) <= MAX_LABELLED_STAGES:
            middle, top = (ends[0] + ends[1]) / 2, np.nanmax(rates[rows])
            note(axes, (middle, top), f"{median:,.0f}", theme)
    axes.set_ylim(0, 1.2 * np.nanmax(rates) or 1.0)
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    _plot_logged(wait_axes, train, "data_wait_share", 100.0, theme)
    # At least 10 % high: a share of one percent should look as small as it is.
    wait_axes.set_ylim(0, max(10.0, wait_axes.get_ylim()[1]))
    _shade([axes, wait_axes], stages, theme)
    _epoch_axis(wait_axes, train, (), stages, theme)
    return figure


def _plot_logged(axes, train, key, scale, theme, label=None):
    """Every logged point; with many of them, their running mean on top."""
    epochs, values = _column(train, "epoch"), scale * _column(train, key)
    many = len(values) > SMOOTH_FROM_POINTS
    axes.plot(
        epochs,
        values,
        color=theme.train,
        linewidth=0.7 if many else 1.4,
        alpha=0.35 if many else 1.0,
        marker="o" if len(values) == 1 else "",
        label=None if many or not len(values) else label,
    )
    if not many:
        return
    window = max(5, len(values) // 60)
    for rows in _by_stage(train).values():  # a jump between stages is real: keep it
        smooth = _running_mean(values[rows], window)
        axes.plot(epochs[rows], smooth, color=theme.train, linewidth=1.6, label=label)
        label = None


def _scale_without_outliers(axes, values):
    """One bad batch among many should not set the scale."""
    if len(values) > SMOOTH_FROM_POINTS:
        low, high = np.nanpercentile(values, (0.2, 99.8))
        margin = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` points, over fewer at the ends."""
    window = min(window, len(values))
    kernel = np.ones(window)
    total = np.convolve(values, kernel, mode="same")
    return total / np.convolve(np.ones(len(values)), kernel, mode="same")


def _shade(panels, stages, theme):
    """Every other stage on a faint band, its image size above the first panel."""
    if not stages:
        return
    edges = _edges(stages)
    for axes in panels:
        for first, last in zip(edges[1:-1:2], edges[2::2], strict=False):
            axes.axvspan(first, last, color=theme.band, linewidth=0, zorder=-1)
    if len(stages) > MAX_LABELLED_STAGES:
        return
    title = panels[0].get_title("left")
    panels[0].set_title(title, loc="left", pad=19, fontsize=TEXT_PT)  # make room
    spans = itertools.pairwise(edges)
    for stage, (first, last) in zip(stages, spans, strict=True):
        size, middle = f"{stage['image_size']} px", (first + last) / 2
        above = {"xycoords": panels[0].get_xaxis_transform(), "color": theme.muted}
        note(panels[0], (middle, 1.0), size, theme, **above)


def _number_steps(axes, edges, heights, theme):
    """Writes the value above each step."""
    for height, (first, last) in zip(heights, itertools.pairwise(edges), strict=True):
        note(axes, ((first + last) / 2, height), brief(height), theme)


def _legend(axes, theme):
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.01, 0.985),
        ncol=3,
        frameon=False,
        fontsize=SMALL_PT,
        labelcolor=theme.text,
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0.3,
    )


def _epoch_axis(axes, train, evals, stages, theme):
    """The axis spans the whole plan, so an unfinished run shows what is missing."""
    ends = [r["epoch"] for r in (*train, *evals)] + list(_edges(stages))
    if max(ends) > 0:
        axes.set_xlim(0, max(ends))
    whole = max(ends) > 4  # shorter runs are read in parts of an epoch
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=whole))
    axes.set_xlabel("Epoch", fontsize=TEXT_PT, color=theme.text)


def _edges(stages: Sequence[Record]) -> np.ndarray:
    """Epochs at which stages begin, and the end of the last: `[stages + 1]`."""
    return np.cumsum([0.0] + [s["epochs"] for s in stages])


def _by_stage(train: Sequence[Record]) -> dict[int, list[int]]:
    """Row numbers of the training records of each stage."""
    rows: dict[int, list[int]] = {}
    for row, record in enumerate(train):
        rows.setdefault(record["stage"], []).append(row)
    return rows


def _column(records: Sequence[Record], key: str) -> np.ndarray:
    """One key of all records, `[records] float64`, NaN where it is not given."""
    return np.array([r.get(key, np.nan) for r in records], float)

"""Pictures of classes as matplotlib figures: confusion, accuracy, training images."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from matplotlib import colors, font_manager, ft2font, ticker
from matplotlib import figure as mpl_figure

from ev2.report import plots

MAX_NAMED_CLASSES = 30  # more classes than this get no ticks
MAX_NUMBERED_CLASSES = 15  # more classes than this get no numbers in the cells
MAX_CELLS = 200  # a side of the confusion matrix; about four pixels each
SAMPLE_COLUMNS = 8
SAMPLES_WIDTH_IN = 7.2  # the text width of a paper
CONFIDENCE_Z = 1.96  # 95 %, two-sided


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Augmented training images of one stage: `[k, s, s, 3] uint8` and `k` labels."""

    title: str
    image_size: int
    images: np.ndarray
    labels: Sequence[int]


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Returns each row divided by its sum: `[classes, classes] float64` in [0, 1].

    A class without test images gives a row of NaN.
    """
    counts = confusion.sum(axis=1, keepdims=True).astype(float)
    empty = np.full(confusion.shape, np.nan)
    return np.divide(confusion, counts, out=empty, where=counts > 0)


def confidence_interval(
    correct: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the 95 % Wilson interval of `correct / count`, in [0, 1].

    `count` is positive. Wilson's interval stays inside [0, 1] and is usable for
    the few images per class that small test sets have.
    """
    share, z2 = correct / count, CONFIDENCE_Z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half *= CONFIDENCE_Z / (1 + z2 / count)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def confusion_matrix(
    confusion: np.ndarray, class_names: Sequence[str], theme: plots.Theme
) -> mpl_figure.Figure:
    """Returns the row-normalized confusion matrix, in percent of the true class.

    Colour follows the square root of the share, so that an error of a few percent
    can be seen beside a diagonal near one hundred. With so many classes that a cell
    would be smaller than a pixel, consecutive classes are drawn as one group.
    """
    classes, group = len(confusion), -(-len(confusion) // MAX_CELLS)
    percent = 100 * row_shares(_group(confusion, group))
    figure = plots.new_figure(theme, 5.0)
    axes = figure.subplots()
    colour_map = colors.LinearSegmentedColormap.from_list(
        "share", [theme.background, theme.ema]
    )
    image = axes.imshow(
        percent,
        cmap=colour_map,
        norm=colors.PowerNorm(0.5, vmin=0, vmax=100),
        interpolation="nearest",
    )
    axes.set_facecolor(theme.band)
    axes.spines[:].set_color(theme.grid)
    axes.tick_params(length=0, labelsize=plots.SMALL_PT, labelcolor=theme.text)
    what = "class" if group == 1 else f"class, in groups of {group}"
    axes.set_xlabel(f"Predicted {what}", fontsize=plots.TEXT_PT, color=theme.text)
    axes.set_ylabel(f"True {what}", fontsize=plots.TEXT_PT, color=theme.text)
    _class_ticks(axes, class_names)
    if classes <= MAX_NUMBERED_CLASSES:
        _write_cells(axes, percent, theme)
    _colour_bar(figure, axes, image, theme)
    return figure


def class_accuracy(
    confusion: np.ndarray, class_names: Sequence[str], theme: plots.Theme
) -> mpl_figure.Figure:
    """Returns the accuracy of each class, or their distribution when there are many.

    Up to `MAX_NAMED_CLASSES` classes: one row each, best on top, with the 95 %
    Wilson interval. More: how many classes reach which accuracy.
    """
    counts = confusion.sum(axis=1)
    seen = np.flatnonzero(counts)
    accuracy = confusion.diagonal()[seen] / counts[seen]
    mean = 100 * accuracy.mean()
    if len(confusion) > MAX_NAMED_CLASSES:
        figure = plots.new_figure(theme, 5.0)
        axes = figure.subplots()
        _accuracy_histogram(axes, accuracy, theme)
    else:
        figure = plots.new_figure(theme, max(5.0, 1.0 + 0.26 * len(seen)))
        axes = figure.subplots()
        order = np.argsort(accuracy, kind="stable")
        _accuracy_rows(axes, confusion, seen[order], class_names, theme)
    axes.axvline(mean, color=theme.text, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    top_edge = axes.get_xaxis_transform()
    plots.note(axes, (mean, 1.0), f"mean {mean:.1f}", theme, xycoords=top_edge)
    label = "Accuracy of the class (%)"
    axes.set_xlabel(label, fontsize=plots.TEXT_PT, color=theme.text)
    return figure


def sample_rows(
    samples: Sequence[Samples], class_names: Sequence[str], theme: plots.Theme
) -> mpl_figure.Figure:
    """Returns one row of training images per stage, each above its class name.

    The first `SAMPLE_COLUMNS` of each stage are drawn at one size in print: a
    coarser picture is one of fewer pixels in training.
    """
    pitch = SAMPLES_WIDTH_IN / SAMPLE_COLUMNS
    tile, row_height = 0.93 * pitch, pitch + 0.5
    height = row_height * len(samples)
    figure = plots.new_figure(theme, height, SAMPLES_WIDTH_IN)
    figure.set_layout_engine("none")
    for row, sample in enumerate(samples):
        top = height - row * row_height  # inches from below, as all positions here
        title = figure.text(0.005, (top - 0.2) / height, sample.title)
        title.set(fontsize=plots.TEXT_PT, color=theme.text)
        for column in range(min(SAMPLE_COLUMNS, len(sample.images))):
            left, bottom = column * pitch + 0.04, top - 0.28 - tile
            position = np.array([left, bottom, tile, tile])
            scale = np.array([SAMPLES_WIDTH_IN, height] * 2)
            axes = figure.add_axes(tuple(position / scale))
            axes.set_axis_off()
            axes.imshow(sample.images[column])
            name = drawable(class_names, sample.labels[column], max_letters=14)
            below = axes.set_title(name, y=-0.19, pad=0)
            below.set(fontsize=7.5, color=theme.muted, parse_math=False)
    return figure


def drawable(class_names: Sequence[str], label: int, *, max_letters: int = 16) -> str:
    """Returns a class's name cut to fit, or `#label` if the font lacks its letters.

    Figures use the one font that comes with matplotlib; the tables of the page
    write every name out in full.
    """
    name = " ".join(class_names[label].split())
    if not name or not _glyphs() >= set(map(ord, name)):
        return f"#{label}"
    if len(name) > max_letters:
        return name[: max_letters - 1].rstrip() + "…"
    return name


@functools.cache
def _glyphs() -> set[int]:
    font = ft2font.FT2Font(font_manager.findfont("DejaVu Sans"))
    return set(font.get_charmap())


def _group(confusion: np.ndarray, group: int) -> np.ndarray:
    """Sums blocks of `group` consecutive rows and columns; the last may be smaller."""
    starts = np.arange(0, len(confusion), group)
    return np.add.reduceat(np.add.reduceat(confusion, starts, axis=0), starts, axis=1)


def _class_ticks(axes, class_names):
    if len(class_names) > MAX_NAMED_CLASSES:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    names = [drawable(class_names, i) for i in range(len(class_names))]
    rotation = 45 if len(names) <= MAX_NUMBERED_CLASSES else 90
    axes.set_xticks(range(len(names)), names, rotation=rotation)
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_xticklabels():
        # Turned about its end, which then lies below the middle of its column.
        label.set(ha="right", va="top" if rotation == 45 else "center")
        label.set(rotation_mode="anchor", parse_math=False)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


def _write_cells(axes, percent, theme):
    """A number in each cell that is not zero, dark on light or light on dark."""
    for (row, column), value in np.ndenumerate(percent):
        if not value > 0:
            continue
        axes.text(
            column,
            row,
            f"{value:.0f}" if value >= 9.95 else f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=plots.SMALL_PT if row == column else plots.SMALL_PT - 1,
            color=theme.background if value > 35 else theme.text,
        )


def _colour_bar(figure, axes, image, theme):
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_ticks([0, 1, 5, 20, 50, 100])
    bar.minorticks_off()
    bar.ax.tick_params(length=0, labelsize=plots.SMALL_PT, labelcolor=theme.muted)
    bar.outline.set_visible(False)
    label = "Share of the true class (%)"
    bar.set_label(label, fontsize=plots.SMALL_PT, color=theme.muted)


def _accuracy_histogram(axes, accuracy, theme):
    """How many classes fall into each four percent."""
    plots.dress(axes, theme, "Number of classes")
    axes.hist(
        100 * accuracy,
        bins=[4.0 * i for i in range(26)],
        color=theme.ema,
        edgecolor=theme.background,
        linewidth=0.8,
    )
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.set_xlim(0, 100)


def _accuracy_rows(axes, confusion, order, class_names, theme):
    """A dot with its interval per class, from the worst below to the best on top."""
    correct, counts = confusion.diagonal()[order], confusion.sum(axis=1)[order]
    low, high = confidence_interval(correct, counts)
    percent, rows = 100 * correct / counts, np.arange(len(order))
    plots.dress(axes, theme)
    axes.grid(False)
    axes.grid(axis="x", color=theme.grid, linewidth=0.8)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    axes.hlines(rows, 100 * low, 100 * high, color=theme.ema, alpha=0.4, linewidth=3)
    axes.plot(percent, rows, "o", color=theme.ema, markersize=5, clip_on=False)
    names = [drawable(class_names, i) for i in order]
    axes.set_yticks(rows, names, color=theme.text)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(rows, [f"{p:.1f}" for p in percent])
    right.tick_params(length=0, labelsize=plots.SMALL_PT, labelcolor=theme.text)
    right.spines[:].set_visible(False)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(max(0, 100 * low.min() - 2), 100)

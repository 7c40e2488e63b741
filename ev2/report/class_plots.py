"""Draws figures of classes: confusion matrix, accuracy by class, training images."""

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


def normalize_rows(confusion: np.ndarray) -> np.ndarray:
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
    fraction, z2 = correct / count, CONFIDENCE_Z**2
    centre = (fraction + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(fraction * (1 - fraction) / count + z2 / (4 * count**2))
    half *= CONFIDENCE_Z / (1 + z2 / count)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def confusion_matrix(
    confusion: np.ndarray, class_names: Sequence[str]
) -> mpl_figure.Figure:
    """Draws the row-normalized confusion matrix, in percent of the true class.

    Color follows the square root of the fraction, so that an error of a few percent
    can be seen beside a diagonal near one hundred. With so many classes that a cell
    would be smaller than a pixel, consecutive classes are drawn as one group.
    """
    group = -(-len(confusion) // MAX_CELLS)
    starts = np.arange(0, len(confusion), group)
    grouped = np.add.reduceat(np.add.reduceat(confusion, starts, 0), starts, 1)
    percent = 100 * normalize_rows(grouped)
    figure = plots.new_figure(5.0)
    axes = figure.subplots()
    color_map = colors.LinearSegmentedColormap.from_list("", ["white", plots.EMA])
    norm = colors.PowerNorm(0.5, vmin=0, vmax=100)
    image = axes.imshow(percent, cmap=color_map, norm=norm, interpolation="nearest")
    axes.set_facecolor(plots.BAND)
    axes.spines[:].set_color(plots.GRID)
    axes.tick_params(length=0, labelsize=plots.SMALL_PT, labelcolor=plots.TEXT)
    noun = "class" if group == 1 else f"class, in groups of {group}"
    axes.set_xlabel(f"Predicted {noun}", fontsize=plots.TEXT_PT, color=plots.TEXT)
    axes.set_ylabel(f"True {noun}", fontsize=plots.TEXT_PT, color=plots.TEXT)
    _name_cells(axes, class_names)
    if len(confusion) <= MAX_NUMBERED_CLASSES:
        _number_cells(axes, percent)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_ticks([0, 1, 5, 20, 50, 100])
    bar.minorticks_off()
    bar.ax.tick_params(length=0, labelsize=plots.SMALL_PT, labelcolor=plots.MUTED)
    bar.outline.set_visible(False)  # pyright: ignore
    label = "Fraction of the true class (%)"
    bar.set_label(label, fontsize=plots.SMALL_PT, color=plots.MUTED)
    return figure


def _name_cells(axes, class_names: Sequence[str]) -> None:
    if len(class_names) > MAX_NAMED_CLASSES:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    names = [drawable(class_names, i) for i in range(len(class_names))]
    rotation = 45 if len(names) <= MAX_NUMBERED_CLASSES else 90
    axes.set_xticks(range(len(names)), names, rotation=rotation)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    for label in axes.get_xticklabels():
        # Rotated about its end, which is then below the middle of its column.
        label.set(ha="right", va="top" if rotation == 45 else "center")
        label.set(rotation_mode="anchor", parse_math=False)


def _number_cells(axes, percent: np.ndarray) -> None:
    """Writes the number into each cell above 0, dark on light or light on dark."""
    for (row, column), value in np.ndenumerate(percent):
        if not value > 0:
            continue
        text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
        size = plots.SMALL_PT if row == column else plots.SMALL_PT - 1
        color = "white" if value > 35 else plots.TEXT
        axes.text(column, row, text, ha="center", va="center", size=size, color=color)


def class_accuracy(
    confusion: np.ndarray, class_names: Sequence[str]
) -> mpl_figure.Figure:
    """Draws the accuracy of each class, or their distribution when there are many.

    Up to `MAX_NAMED_CLASSES` classes: one row each, best on top, with the 95 %
    Wilson interval. More: a histogram of the accuracies.
    """
    counts = confusion.sum(axis=1)
    tested = np.flatnonzero(counts)
    accuracy = confusion.diagonal()[tested] / counts[tested]
    mean = 100 * accuracy.mean()
    many = len(confusion) > MAX_NAMED_CLASSES
    figure = plots.new_figure(5.0 if many else max(5.0, 1.0 + 0.26 * len(tested)))
    axes = figure.subplots()
    if many:
        _draw_histogram(axes, accuracy)
    else:
        order = tested[np.argsort(accuracy, kind="stable")]
        _draw_accuracies(axes, confusion, order, class_names)
    axes.axvline(mean, color=plots.TEXT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    top = axes.get_xaxis_transform()
    plots.annotate(axes, (mean, 1.0), f"mean {mean:.2f}", xycoords=top)
    label = "Accuracy of the class (%)"
    axes.set_xlabel(label, fontsize=plots.TEXT_PT, color=plots.TEXT)
    return figure


def _draw_histogram(axes, accuracy: np.ndarray) -> None:
    """Draws the number of classes in each four percent of accuracy."""
    plots.style_axes(axes, "Number of classes")
    bins = [4.0 * i for i in range(26)]
    axes.hist(100 * accuracy, bins, color=plots.EMA, edgecolor="white", linewidth=0.8)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.set_xlim(0, 100)


def _draw_accuracies(axes, confusion, order, class_names: Sequence[str]) -> None:
    """Draws a dot with its interval per class, from the worst to the best on top."""
    correct, counts = confusion.diagonal()[order], confusion.sum(axis=1)[order]
    low, high = confidence_interval(correct, counts)
    percent, rows = 100 * correct / counts, np.arange(len(order))
    plots.style_axes(axes)
    axes.grid(False)
    axes.grid(axis="x", color=plots.GRID, linewidth=0.8)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    axes.hlines(rows, 100 * low, 100 * high, color=plots.EMA, alpha=0.4, linewidth=3)
    axes.plot(percent, rows, "o", color=plots.EMA, markersize=5, clip_on=False)
    names = [drawable(class_names, i) for i in order]
    axes.set_yticks(rows, names, color=plots.TEXT, parse_math=False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(rows, [f"{p:.2f}" for p in percent])
    right.tick_params(length=0, labelsize=plots.SMALL_PT, labelcolor=plots.TEXT)
    right.spines[:].set_visible(False)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(max(0, 100 * low.min() - 2), 100)


def sample_rows(
    samples: Sequence[Samples], class_names: Sequence[str]
) -> mpl_figure.Figure:
    """Draws one row of training images per stage, each above its class name.

    The first `SAMPLE_COLUMNS` images of each stage are drawn at one size in print: a
    coarser image has fewer pixels in training.
    """
    figure = plots.new_figure(1.35 * len(samples), SAMPLES_WIDTH_IN)
    rows = figure.subfigures(len(samples), 1, squeeze=False)
    for row, sample in zip(rows.flat, samples, strict=True):
        row.suptitle(sample.title, x=0.005, ha="left", fontsize=plots.TEXT_PT)
        tiles = row.subplots(1, SAMPLE_COLUMNS)
        for axes in tiles:
            axes.set_axis_off()
        for axes, image, label in zip(
            tiles, sample.images, sample.labels, strict=False
        ):
            axes.imshow(image)
            name = drawable(class_names, label, max_letters=14)
            axes.set_title(name, y=-0.22, pad=0, fontsize=7.5, parse_math=False)
    return figure


def drawable(class_names: Sequence[str], label: int, *, max_letters: int = 16) -> str:
    """Returns a class name cut to fit, or `#label` if the font lacks its letters.

    Figures use the one font that comes with matplotlib; the tables of the page
    show every name in full.
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

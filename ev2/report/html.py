"""Renders the report as one HTML page from `report.html.j2`."""

import base64
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ev2 import progressive
from ev2.report import class_plots, plots
from ev2.train.workdir import Run

MAX_CLASS_ROWS = 10  # above twice this: the best and the worst classes
MAX_CONFUSIONS = 12
JPEG_FROM_PX = 96  # larger sample images are embedded as JPEG, smaller ones as PNG


def render(
    run: Run,
    figures: Mapping[str, bytes],
    samples: Sequence[class_plots.Samples],
    no_samples: str,
) -> str:
    """Returns the whole page.

    Args:
        run: files of the run.
        figures: PNG files by name.
        samples: training images of the stages; empty if there are none.
        no_samples: reason why there are no samples.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"brief": plots.brief, "percent": "{:.2%}".format}
    return environment.get_template("report.html.j2").render(
        run=run,
        status=_status(run),
        tiles=list(_tiles(run)),
        skipped=max((record["skipped"] for record in run.train), default=0),
        strengths=[(s.name, plots.title(s)) for s in progressive.STRENGTHS],
        figures={name: _figure(png) for name, png in figures.items()},
        samples=[_sample_row(sample, run.class_names) for sample in samples],
        no_samples=no_samples,
        class_tables=_class_tables(run),
        confusions=_confusions(run),
        config=list(_flatten(run.config)),
    )


def _status(run: Run) -> str:
    if run.final:
        step = run.final["step"]
        trained = run.final.get("trained_steps", step)
        best = f"; the best, step {step:,}, is the result" if step != trained else ""
        return f"Finished after {trained:,} steps{best}"
    if not run.stages:
        return "Not started"
    last = max((record["step"] for record in (*run.train, *run.evals)), default=0)
    return f"Unfinished: {last:,} of {run.stages[-1]['last_step']:,} steps logged"


def _tiles(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yields label, value and detail of the available key figures."""
    result, when = run.final, "test images"
    if result is None and run.evals:
        result, when = run.evals[-1], f"at epoch {run.evals[-1]['epoch']:.1f}"
    if result:
        yield "Top-1, EMA", f"{result['ema']['top1']:.2%}", when
        yield "Top-5, EMA", f"{result['ema']['top5']:.2%}", when
        yield "Top-1, raw", f"{result['raw']['top1']:.2%}", when
    if run.final:
        yield "Evaluated at", f"{run.final['image_size']} px", "image side"
    if run.plan:
        params, classes = run.plan["params"], len(run.class_names)
        short = f"{params / 1e6:.1f} M" if params >= 1e6 else f"{params / 1e3:.0f} k"
        yield "Parameters", short, f"{params:,}"
        images = f"{run.plan['num_train_images']:,}"
        yield "Training images", images, f"{classes:,} classes"
    if run.stages:
        epochs = sum(stage["epochs"] for stage in run.stages)
        yield "Epochs", f"{epochs:.4g}", f"{run.stages[-1]['last_step']:,} steps"
    if run.wall_seconds:
        when = "in all" if run.final else "so far"
        yield "Wall time", _duration(run.wall_seconds), when


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def _figure(png: bytes) -> dict[str, Any]:
    """Returns the size in CSS px and the data URI of a figure."""
    with Image.open(io.BytesIO(png)) as image:
        width, height = (side // 2 for side in image.size)
    return {"width": width, "height": height, "uri": _data_uri("png", png)}


def _sample_row(
    sample: class_plots.Samples, class_names: Sequence[str]
) -> dict[str, Any]:
    coarse = sample.image_size < JPEG_FROM_PX
    kind = "png" if coarse else "jpeg"
    options = {"optimize": True} if coarse else {"quality": 88, "subsampling": 0}
    tiles = []
    for image, label in zip(sample.images, sample.labels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, **options)
        tiles.append((_data_uri(kind, buffer.getvalue()), class_names[label]))
    return {"title": sample.title, "coarse": coarse, "tiles": tiles}


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _class_tables(run: Run) -> dict[str, list[tuple]]:
    """Returns title and rows (class, accuracy, images, most frequent error)."""
    if run.confusion is None:
        return {}
    names, counts = run.class_names, run.confusion.sum(axis=1)
    fractions = class_plots.normalize_rows(run.confusion)
    tested = np.flatnonzero(counts)
    order = tested[np.argsort(-fractions.diagonal()[tested], kind="stable")]
    rows = []
    for i in order:
        wrong = np.where(np.arange(len(counts)) == i, 0.0, fractions[i])
        other = int(wrong.argmax())
        error = f"{names[other]} ({wrong[other]:.2%})" if wrong[other] else "–"
        rows.append((names[i], f"{fractions[i, i]:.2%}", f"{counts[i]:,}", error))
    if len(rows) <= 2 * MAX_CLASS_ROWS:
        return {"All classes, best first": rows}
    return {
        "Best classes": rows[:MAX_CLASS_ROWS],
        "Worst classes": rows[: -MAX_CLASS_ROWS - 1 : -1],
    }


def _confusions(run: Run) -> list[tuple]:
    """Returns rows (true class, predicted, fraction, images) of the largest errors."""
    if run.confusion is None:
        return []
    fractions = np.nan_to_num(class_plots.normalize_rows(run.confusion))
    np.fill_diagonal(fractions, 0)
    largest = np.argsort(-fractions, axis=None, kind="stable")[:MAX_CONFUSIONS]
    cells = zip(*np.unravel_index(largest, fractions.shape), strict=True)
    names = run.class_names
    return [
        (names[t], names[p], f"{fractions[t, p]:.2%}", f"{run.confusion[t, p]:,}")
        for t, p in cells
        if fractions[t, p] > 0
    ]


def _flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, repr(tuple(value) if isinstance(value, list) else value)

"""The report as one HTML page: values in, a string out; it refers to no other file."""

import base64
import dataclasses
import html
import io
import string
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from ev2.report import class_plots, page_template, plots
from ev2.train import workdir as workdirs

MAX_CLASS_ROWS = 10  # of the tables of classes; above twice this, best and worst
MAX_CONFUSIONS = 12
JPEG_FROM_PX = 96  # larger training images are embedded as JPEG, smaller as they are

CAPTIONS = {
    "learning_curves": (
        "Loss and accuracy",
        "Training values are of augmented images, with dropout and drop path on, and "
        "need not lie above the test values. Shaded bands are the stages, with their "
        "image size; test images are always of the last size or more, at which weights "
        "of a small stage may do badly until they have met it.",
    ),
    "stages": (
        "Image size and regularization",
        "What Algorithm 1 makes of the first and last values: each stage holds one "
        "image size and one strength of every regularizer.",
    ),
    "learning_rate": ("Learning rate", "As used at the logged steps."),
    "throughput": (
        "Throughput",
        "Images per second over all devices, between two logged steps; compiling and "
        "evaluating are not counted. Below: the share of that time in which the loop "
        "waited for its next batch.",
    ),
    "confusion": (
        "Confusion matrix",
        "EMA weights on the test images; each row adds up to 100%. Colour follows the "
        "square root of the share, so that small shares can be seen.",
    ),
    "class_accuracy": (
        "Accuracy by class",
        "EMA weights on the test images. A few classes are shown one by one, with 95% "
        "confidence intervals (Wilson) for the number of test images; of many, the "
        "bars count how many reach which accuracy.",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as PNG files, one for each appearance."""

    light: bytes
    dark: bytes


def render(
    run: workdirs.Run,
    pictures: Mapping[str, Picture],
    samples: Sequence[class_plots.Samples],
    no_samples: str,
) -> str:
    """Returns the whole page.

    Args:
        run: What the run left.
        pictures: Figures by the names of `CAPTIONS`.
        samples: Training images of the stages; empty if there are none.
        no_samples: Why there are no samples.
    """
    title = f"{run.model} on {run.dataset}"
    curves = [n for n in CAPTIONS if n not in ("confusion", "class_accuracy")]
    sections = [
        _section("Result", _notes(run), _tiles(run), _evaluations(run)),
        _section("Stages", _stage_table(run)),
        _section("Training", _figures(pictures, curves)),
        _section("Training images", _samples(run, samples, no_samples)),
        _section("Classes", _classes(run, pictures)),
        _section("Configuration", _config(run)),
    ]
    return string.Template(page_template.PAGE).substitute(
        title=_text(title),
        status=_text(_status(run)),
        folder=_text(run.workdir.resolve().name),
        versions=_text(" · ".join(f"{k} {v}" for k, v in run.versions.items())),
        sections="\n".join(sections),
        style=page_template.STYLE,
    )


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>\n{''.join(parts)}</section>"


def _status(run: workdirs.Run) -> str:
    if run.final:
        step = run.final["step"]
        trained = run.final.get("trained_steps", step)
        best = f"; the best, step {step:,}, is the result" if step != trained else ""
        return f"Finished after {trained:,} steps{best}"
    if not run.stages:
        return "Not started"
    last = max((r["step"] for r in (*run.train, *run.evals)), default=0)
    total = run.stages[-1]["last_step"]
    return f"Unfinished: {last:,} of {total:,} steps logged"


def _notes(run: workdirs.Run) -> str:
    notes = list(run.notes)
    skipped = max((record["skipped"] for record in run.train), default=0)
    if skipped:
        notes.append(
            f"{skipped:,} training file(s) could not be decoded and were skipped; "
            "the log of the run names them."
        )
    return "".join(f'<p class="note">{_text(note)}</p>' for note in notes)


def _tiles(run: workdirs.Run) -> str:
    """The figures one looks for first; those that are not known yet are left out."""
    tiles = []
    result, when = run.final, "test images"
    if result is None and run.evals:
        result, when = run.evals[-1], f"at epoch {run.evals[-1]['epoch']:.1f}"
    if result:
        tiles += [
            ("Top-1, EMA", _percent(result["ema"]["top1"]), when),
            ("Top-5, EMA", _percent(result["ema"]["top5"]), when),
            ("Top-1, raw", _percent(result["raw"]["top1"]), when),
        ]
    if run.final:
        tiles.append(("Evaluated at", f"{run.final['image_size']} px", "image side"))
    if run.plan:
        classes = f"{len(run.class_names):,} classes"
        tiles += [
            ("Parameters", _count(run.plan["params"]), f"{run.plan['params']:,}"),
            ("Training images", f"{run.plan['num_train_images']:,}", classes),
        ]
    if run.stages:
        epochs = sum(stage["epochs"] for stage in run.stages)
        steps = f"{run.stages[-1]['last_step']:,} steps"
        tiles.append(("Epochs", f"{epochs:.4g}", steps))
    if run.wall_seconds:
        done = "in all" if run.final else "so far"
        tiles.append(("Wall time", _duration(run.wall_seconds), done))
    cells = (
        f'<div class="tile"><div class="label">{_text(label)}</div>'
        f'<div class="value">{_text(value)}</div>'
        f'<div class="label">{_text(detail)}</div></div>'
        for label, value, detail in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _evaluations(run: workdirs.Run) -> str:
    if run.final is None:
        return '<p class="note">The run has not been evaluated at its end yet.</p>'
    rows = [
        (
            label,
            _percent(run.final[weights]["top1"]),
            _percent(run.final[weights]["top5"]),
            f"{run.final[weights]['count']:,}",
            f"{run.final[weights]['skipped']:,}",
        )
        for weights, label in (("ema", "EMA"), ("raw", "raw"))
    ]
    headings = ("Weights", "Top-1", "Top-5", "Counted", "Skipped")
    return _table(headings, rows, words=(0,))


def _stage_table(run: workdirs.Run) -> str:
    if not run.stages:
        return '<p class="note">The run has not written its stages yet.</p>'
    strengths = [key for _, key in plots.STRENGTHS]
    headings = ["Stage", "Steps", "Epochs", "Size, px", "Batch"]
    headings += [title.split(" (")[0] for title, _ in plots.STRENGTHS]
    headings += ["Learning rate", "Compile, s", "Train, s", "Images/s"]
    rows = [
        [
            str(stage["index"] + 1),
            f"{stage['last_step'] - stage['first_step']:,}",
            f"{stage['epochs']:.2f}",
            str(stage["image_size"]),
            f"{stage['batch_size']:,}",
            *(plots.brief(stage["strengths"][key]) for key in strengths),
            " → ".join(f"{rate:.2g}" for rate in stage["learning_rate"]),
            _measured(stage, "compile_seconds", ".1f"),
            _measured(stage, "train_seconds", ",.1f"),
            _measured(stage, "images_per_second", ",.0f"),
        ]
        for stage in run.stages
    ]
    return _table(headings, rows, words=())


def _measured(stage: workdirs.Record, key: str, form: str) -> str:
    return format(stage[key], form) if key in stage else "–"


def _figures(pictures: Mapping[str, Picture], names: Iterable[str]) -> str:
    shown = [_figure(name, pictures[name]) for name in names if name in pictures]
    if not shown:
        return '<p class="note">Nothing has been logged yet.</p>'
    return f'<div class="figures">{"".join(shown)}</div>'


def _figure(name: str, picture: Picture) -> str:
    title, caption = CAPTIONS[name]
    with Image.open(io.BytesIO(picture.light)) as image:
        width, height = (side // 2 for side in image.size)
    return (
        f'<figure id="{name}"><h3>{title}</h3><picture>'
        f'<source media="(prefers-color-scheme: dark)" '
        f'srcset="{_data_uri("png", picture.dark)}">'
        f'<img alt="{title}" width="{width}" height="{height}" '
        f'src="{_data_uri("png", picture.light)}"></picture>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _samples(
    run: workdirs.Run, samples: Sequence[class_plots.Samples], no_samples: str
) -> str:
    if not samples:
        return f'<p class="note">{_text(no_samples)}</p>'
    parts = [
        "<p>The first images of each stage as the training pipeline delivers them: "
        "cropped, flipped and augmented. Mixup and CutMix, where they are on, act "
        "later, on the device.</p>"
    ]
    for sample in samples:
        tiles = (
            f'<figure><img alt="" src="{_encode(image)}">'
            f"<figcaption>{_text(run.class_names[label])}</figcaption></figure>"
            for image, label in zip(sample.images, sample.labels, strict=True)
        )
        kind = "samples coarse" if sample.image_size < JPEG_FROM_PX else "samples"
        parts.append(
            f'<h3>{_text(sample.title)}</h3><div class="{kind}">{"".join(tiles)}</div>'
        )
    return "".join(parts)


def _encode(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    if len(image) < JPEG_FROM_PX:
        Image.fromarray(image).save(buffer, "png", optimize=True)
        return _data_uri("png", buffer.getvalue())
    Image.fromarray(image).save(buffer, "jpeg", quality=88, subsampling=0)
    return _data_uri("jpeg", buffer.getvalue())


def _classes(run: workdirs.Run, pictures: Mapping[str, Picture]) -> str:
    if run.confusion is None:
        return '<p class="note">There is no confusion matrix.</p>'
    names, counts = run.class_names, run.confusion.sum(axis=1)
    seen = np.flatnonzero(counts)
    accuracy = run.confusion.diagonal()[seen] / counts[seen]
    order = seen[np.argsort(-accuracy, kind="stable")]
    rows = [_class_row(run.confusion, names, i) for i in order]
    if len(rows) <= 2 * MAX_CLASS_ROWS:
        tables = {"All classes, best first": rows}
    else:
        tables = {
            "Best classes": rows[:MAX_CLASS_ROWS],
            "Worst classes": rows[: -MAX_CLASS_ROWS - 1 : -1],
        }
    headings = ("Class", "Accuracy", "Images", "Most often taken for")
    columns = [
        f"<h3>{title}</h3>{_table(headings, rows, words=(0, 3))}"
        for title, rows in tables.items()
    ]
    headings = ("True class", "Predicted", "Share of true", "Images")
    confusions = _table(headings, _confusions(run), words=(0, 1))
    columns.append(f"<h3>Most frequent confusions</h3>{confusions}")
    return (
        _figures(pictures, ("confusion", "class_accuracy"))
        + '<div class="columns">'
        + "".join(f"<div>{column}</div>" for column in columns)
        + "</div>"
    )


def _class_row(confusion, names, i) -> tuple[str, ...]:
    wrong = confusion[i].copy()
    wrong[i] = 0
    other = int(wrong.argmax())
    share = wrong[other] / confusion[i].sum()
    return (
        names[i],
        _percent(confusion[i, i] / confusion[i].sum()),
        f"{confusion[i].sum():,}",
        f"{names[other]} ({share:.1%})" if share else "–",
    )


def _confusions(run: workdirs.Run) -> list[tuple[str, ...]]:
    """The largest shares off the diagonal."""
    assert run.confusion is not None
    shares = np.nan_to_num(class_plots.row_shares(run.confusion))
    np.fill_diagonal(shares, 0)
    largest = np.argsort(-shares, axis=None, kind="stable")[:MAX_CONFUSIONS]
    cells = zip(*np.unravel_index(largest, shares.shape), strict=True)
    names = run.class_names
    return [
        (names[t], names[p], f"{shares[t, p]:.1%}", f"{run.confusion[t, p]:,}")
        for t, p in cells
        if shares[t, p] > 0
    ]


def _config(run: workdirs.Run) -> str:
    table = _table(("Key", "Value"), list(_flat(run.config)), words=(0, 1))
    return f"<details><summary>Every key and its value</summary>{table}</details>"


def _flat(config: workdirs.Record, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            shown = tuple(value) if isinstance(value, list) else value
            yield prefix + key, repr(shown)


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], words: Container[int]
) -> str:
    """A table; columns whose number is in `words` are set left, the others right."""

    def cells(tag: str, row: Sequence[object]) -> str:
        kinds = (" class=words" if i in words else "" for i in range(len(row)))
        return "".join(
            f"<{tag}{kind}>{_text(cell)}</{tag}>"
            for kind, cell in zip(kinds, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', headings)}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _text(value: object) -> str:
    return html.escape(str(value))


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"

"""The report of a run: pictures in `plots/` and one self-contained `report.html`."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np
from absl import logging
from matplotlib import figure as mpl_figure

from ev2 import class_plots, page, plots, records

SAMPLES_PER_STAGE = 12  # divides into rows of 6, 4, 3 and 2
MAX_SAMPLED_STAGES = 6  # more stages than this: one of each image size

Draw = Callable[[plots.Theme], mpl_figure.Figure]


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes `plots/*.png` and `report.html` of a run and returns the page's path.

    The run may be unfinished: the report shows what there is and says what is
    missing. The page needs no other file and no network, and looks right on a
    phone and in dark mode. Pictures of training images are drawn anew from the
    training pipeline; if the data cannot be read any more the page says so.
    Each file is replaced at once or not at all; nothing else is touched.

    Raises:
        errors.InputError: `workdir` is not the folder of a run.
    """
    run = records.read(pathlib.Path(workdir))
    samples, excuse = _draw_samples(run)
    plots_dir = run.workdir / "plots"
    plots_dir.mkdir(exist_ok=True)
    pictures = {}
    for name, draw in _figures(run).items():
        light = plots.to_png(draw(plots.LIGHT))
        _replace(plots_dir / f"{name}.png", light)
        pictures[name] = page.Picture(light=light, dark=plots.to_png(draw(plots.DARK)))
    if samples:
        rows = class_plots.sample_rows(samples, run.class_names, plots.LIGHT)
        _replace(plots_dir / "samples.png", plots.to_png(rows))
    html = page.render(run, pictures, samples, excuse)
    _replace(run.workdir / "report.html", html.encode())
    return run.workdir / "report.html"


def _figures(run: records.Run) -> dict[str, Draw]:
    """The pictures that this run has values for, by file name."""
    train, evals, stages = run.train, run.evals, run.stages
    figures: dict[str, Draw] = {}
    if train or evals:
        figures["learning_curves"] = lambda theme: plots.learning_curves(
            train, evals, stages, theme
        )
    if stages:
        figures["stages"] = lambda theme: plots.stage_steps(stages, theme)
    if train:
        figures["learning_rate"] = lambda theme: plots.learning_rate(
            train, stages, theme
        )
        figures["throughput"] = lambda theme: plots.throughput(train, stages, theme)
    if run.confusion is not None:
        matrix, names = run.confusion, run.class_names
        figures["confusion"] = lambda theme: class_plots.confusion_matrix(
            matrix, names, theme
        )
        figures["class_accuracy"] = lambda theme: class_plots.class_accuracy(
            matrix, names, theme
        )
    return figures


def _draw_samples(run: records.Run) -> tuple[list[class_plots.Samples], str]:
    """The first images of each stage, or none and the reason why."""
    if not run.stages:
        return [], "The run has not written its stages yet."
    try:
        return _read_samples(run), ""
    except Exception as error:  # a missing data set must not cost a finished run
        logging.warning("report: no training images: %s", error)
        return [], f"The training data could not be read: {error}"


def _read_samples(run: records.Run) -> list[class_plots.Samples]:
    from ev2 import data, progressive  # late: loads TensorFlow

    config = ml_collections.ConfigDict(_with_tuples(run.config))
    stages = progressive.make_stages(config, run.plan["num_train_images"])
    if len(stages) > MAX_SAMPLED_STAGES:
        first_of_size = {s.image_size: s for s in reversed(stages)}
        stages = [first_of_size[size] for size in sorted(first_of_size)]
    samples = []
    for stage in stages:
        # Augmentation follows the position in the run, so a smaller batch holds
        # the same first images and spares decoding the others.
        few = dataclasses.replace(stage, batch_size=SAMPLES_PER_STAGE)
        batches = data.make_train_data(config, few, first_step=stage.first_step)
        try:
            batch = next(iter(batches))
        finally:
            batches.close()
        kept = np.flatnonzero(batch["mask"])  # corrupt files have no picture
        samples.append(
            class_plots.Samples(
                title=_sample_title(stage),
                image_size=stage.image_size,
                images=batch["image"][kept],
                labels=[int(label) for label in batch["label"][kept]],
            )
        )
    return samples


def _sample_title(stage) -> str:
    return (
        f"Stage {stage.index + 1}: {stage.image_size} px, "
        f"RandAugment magnitude {stage.randaugment:.3g}"
    )


def _with_tuples(value):
    """JSON has lists only; the config has tuples only."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
